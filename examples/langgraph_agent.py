# SPDX-License-Identifier: Apache-2.0
"""LangChain's agent (on langgraph) with one tool.

pip install langchain langchain-openai; MARS_URL=http://127.0.0.1:8000 python langgraph_agent.py T
"""

import os
import subprocess
import sys

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI


def bash(command: str) -> str:
    """Run a command in the shell."""
    return subprocess.getoutput(command)


model = ChatOpenAI(
    model=os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b"),
    base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key="-",
    max_retries=5,
)
agent = create_agent(model, tools=[bash])
result = agent.invoke({"messages": [("user", sys.argv[1])]}, {"recursion_limit": 200})
print(result["messages"][-1].content)
