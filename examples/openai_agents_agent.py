# SPDX-License-Identifier: Apache-2.0
"""An agent on the OpenAI Agents SDK with one tool, over the responses API, streamed.

pip install openai-agents; MARS_URL=http://127.0.0.1:8000 python openai_agents_agent.py "TASK"
"""

import asyncio
import os
import subprocess
import sys

from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # it would send its traces to OpenAI


@function_tool
def bash(command: str) -> str:
    """Run a command in the shell."""
    return subprocess.getoutput(command)


async def main() -> None:
    """Run the task."""
    base = os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1"
    client = AsyncOpenAI(base_url=base, api_key="-", max_retries=5)
    name = os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b")
    agent = Agent("worker", model=OpenAIResponsesModel(name, client), tools=[bash])
    running = Runner.run_streamed(agent, sys.argv[1], max_turns=100)
    async for _ in running.stream_events():
        pass
    print(running.final_output)


asyncio.run(main())
