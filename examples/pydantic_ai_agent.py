# SPDX-License-Identifier: Apache-2.0
"""A Pydantic AI agent with one tool.

pip install 'pydantic-ai-slim[openai]'; MARS_URL=... python pydantic_ai_agent.py "TASK"
"""

import os
import subprocess
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(
    base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1", api_key="-"
)
model = OpenAIChatModel(os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b"), provider=provider)
agent = Agent(model)


@agent.tool_plain
def bash(command: str) -> str:
    """Run a command in the shell."""
    return subprocess.getoutput(command)


print(agent.run_sync(sys.argv[1]).output)
