# SPDX-License-Identifier: Apache-2.0
"""OpenHands, whose terminal calls wait for slots of the tool runtime.

Beside OpenHands, install mars-serving in the same environment. `mars serve` names MARS_TOOLS at
its start; without it this is openhands_agent.py. Several conversations in threads work, too.
"""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches one at import
from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool

from mars.integrations.openhands import register

llm = LLM(
    model="openai/" + os.environ.get("MARS_MODEL", "qwen3-coder-30b-a3b"),
    base_url=os.environ.get("MARS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key="-",
)
tools = [
    Tool(name=register(), params={"terminal_type": "subprocess"}),
    Tool(name=FileEditorTool.name),
]
conversation = Conversation(agent=Agent(llm=llm, tools=tools), workspace=".")
conversation.send_message(sys.argv[1])
conversation.run()
print(conversation.state.execution_status)
