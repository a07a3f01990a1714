# SPDX-License-Identifier: Apache-2.0
"""OpenHands, unmodified, with nothing but a base URL.

pip install openhands-sdk openhands-tools; MARS_URL=... python openhands_agent.py "TASK"

It sends its conversation id with each request, so MARS knows the session. To let the tool
runtime order its tools, too, see openhands_with_tools.py.
"""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches one at import
os.environ.setdefault("OPENHANDS_SUPPRESS_BANNER", "1")
from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.terminal import TerminalTool

llm = LLM(
    model="openai/" + os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b"),
    base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key="-",
)
tools = [
    Tool(name=TerminalTool.name, params={"terminal_type": "subprocess"}),
    Tool(name=FileEditorTool.name),
]
conversation = Conversation(agent=Agent(llm=llm, tools=tools), workspace=".")
conversation.send_message(sys.argv[1])
conversation.run()
print(conversation.state.execution_status)
