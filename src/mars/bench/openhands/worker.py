# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""Many OpenHands conversations in one process; runs in OpenHands' own environment.

Reads its plan (one JSON line) from standard input, makes everything ready, says ``ready``,
reads the monotonic time at which the experiment begins, and then writes one JSON line
when a task ends. OpenHands is used as its documentation shows, and not changed in any way.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import uuid
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OPENHANDS_SUPPRESS_BANNER", "1")

from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.terminal import TerminalTool

TIMEOUT_S = 3600
"""A held session waits; how long is what is measured, not what the client bears."""
_lock = threading.Lock()


def main() -> None:
    """Run the tasks of the plan."""
    logging.disable(logging.WARNING)
    plan = json.loads(sys.stdin.readline())
    terminal = TerminalTool.name
    if plan["is_slotted"]:
        from mars.integrations.openhands import register

        terminal = register()
    tools = [
        Tool(name=terminal, params={"terminal_type": "subprocess"}),
        Tool(name=FileEditorTool.name),
    ]
    _say({"ready": True})
    start = float(sys.stdin.readline())
    threads = [
        threading.Thread(target=_run, args=(task, plan, tools, start)) for task in plan["tasks"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(task: dict[str, Any], plan: dict[str, Any], tools: list[Tool], start: float) -> None:
    """One task, from its arrival to its end."""
    due = start + task["arrival_s"]
    time.sleep(max(0.0, due - time.monotonic()))
    began = time.monotonic()
    ended: dict[str, Any] = {"session_id": task["session_id"], "lag_s": began - due}
    try:
        llm = LLM(
            model=f"openai/{plan['model']}",
            base_url=f"{plan['url']}/v1",
            api_key="-",
            timeout=TIMEOUT_S,
        )
        conversation = Conversation(
            agent=Agent(llm=llm, tools=tools),
            workspace=task["work"],
            conversation_id=uuid.UUID(task["conversation_id"]),
            visualizer=None,
            stuck_detection=False,
        )
        conversation.send_message(task["text"])
        conversation.run()
        status = str(conversation.state.execution_status)
        ended["error"] = None if "FINISHED" in status.upper() else status
    except Exception as error:  # noqa: BLE001 - whatever OpenHands raises is the task's outcome
        ended["error"] = f"{type(error).__name__}: {error}"[:300]
    ended |= {"began": began, "ended": time.monotonic()}
    _say(ended)


def _say(record: dict[str, Any]) -> None:
    with _lock:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
