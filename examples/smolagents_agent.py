# SPDX-License-Identifier: Apache-2.0
"""A smolagents agent that calls tools.

pip install 'smolagents[openai]'; MARS_URL=http://127.0.0.1:8000 python smolagents_agent.py "TASK"
"""

import os
import subprocess
import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def bash(command: str) -> str:
    """Run a command in the shell.

    Args:
        command: what to run.
    """
    return subprocess.getoutput(command)


model = OpenAIServerModel(
    model_id=os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b"),
    api_base=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key="-",
)
print(ToolCallingAgent(tools=[bash], model=model, max_steps=100).run(sys.argv[1]))
