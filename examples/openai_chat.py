# SPDX-License-Identifier: Apache-2.0
"""An agent of a few lines on the openai package, chat completions, streamed.

    pip install openai; MARS_URL=http://127.0.0.1:8000 python openai_chat.py "TASK"

It sends no session id: MARS knows it by the tool-call ids that it echoes.
"""

import json
import os
import subprocess
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1", api_key="-")
model = client.models.list().data[0].id
schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"type": "function", "function": {"name": "bash", "parameters": schema}}]
messages = [{"role": "user", "content": sys.argv[1]}]
while True:
    with client.chat.completions.stream(model=model, messages=messages, tools=tools) as stream:
        reply = stream.get_final_completion().choices[0].message
    messages.append(reply.model_dump(exclude_none=True, exclude={"parsed"}))
    for call in reply.tool_calls or []:
        output = subprocess.getoutput(json.loads(call.function.arguments)["command"])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    if not reply.tool_calls:
        print(reply.content)
        break
