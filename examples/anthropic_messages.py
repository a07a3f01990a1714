# SPDX-License-Identifier: Apache-2.0
"""An agent of a few lines on the anthropic package, streamed.

pip install anthropic; MARS_URL=http://127.0.0.1:8000 python anthropic_messages.py "TASK"
"""

import os
import subprocess
import sys

from anthropic import Anthropic

client = Anthropic(base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000"), api_key="-")
model = os.environ.get("MARS_MODEL") or client.models.list().data[0].id
schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"name": "bash", "description": "Run a command.", "input_schema": schema}]
messages = [{"role": "user", "content": sys.argv[1]}]
while True:
    with client.messages.stream(
        model=model, max_tokens=8192, messages=messages, tools=tools
    ) as stream:
        reply = stream.get_final_message()
    messages.append({"role": "assistant", "content": reply.content})
    results = []
    for call in (block for block in reply.content if block.type == "tool_use"):
        output = subprocess.getoutput(call.input["command"])
        results.append({"type": "tool_result", "tool_use_id": call.id, "content": output})
    if not results:
        print("".join(block.text for block in reply.content if block.type == "text"))
        break
    messages.append({"role": "user", "content": results})
