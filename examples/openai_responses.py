# SPDX-License-Identifier: Apache-2.0
"""An agent of a few lines on the openai package, responses API, streamed.

pip install openai; MARS_URL=http://127.0.0.1:8000 python openai_responses.py "TASK"
"""

import json
import os
import subprocess
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1", api_key="-")
model = client.models.list().data[0].id
schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"type": "function", "name": "bash", "parameters": schema, "strict": False}]
items = [{"role": "user", "content": sys.argv[1]}]
while True:
    with client.responses.stream(model=model, input=items, tools=tools, store=False) as stream:
        response = stream.get_final_response()
    calls = [item for item in response.output if item.type == "function_call"]
    items += [item.model_dump(exclude_none=True) for item in response.output]
    for call in calls:
        output = subprocess.getoutput(json.loads(call.arguments)["command"])
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
    if not calls:
        print(response.output_text)
        break
