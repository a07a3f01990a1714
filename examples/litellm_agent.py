# SPDX-License-Identifier: Apache-2.0
"""An agent of a few lines on litellm, not streamed.

pip install litellm; MARS_URL=http://127.0.0.1:8000 python litellm_agent.py "TASK"
"""

import json
import os
import subprocess
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches one at import
import litellm

model = "openai/" + os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b")
base = os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1"
schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"type": "function", "function": {"name": "bash", "parameters": schema}}]
messages = [{"role": "user", "content": sys.argv[1]}]
while True:
    completion = litellm.completion(
        model, messages, tools=tools, api_base=base, api_key="-", num_retries=5, timeout=300
    )
    reply = completion.choices[0].message
    messages.append(reply.model_dump(exclude_none=True))
    for call in reply.tool_calls or []:
        output = subprocess.getoutput(json.loads(call.function.arguments)["command"])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    if not reply.tool_calls:
        print(reply.content)
        break
