# SPDX-License-Identifier: Apache-2.0
import subprocess
from pathlib import Path

from mars.bench.openhands.plan import (
    prepare_workspace,
    script,
    script_name,
    task_text,
    write_scripts,
)
from mars.engine.emulated.model_dir import filler_text
from mars.engine.emulated.scripts import ScriptBook
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

SESSION = TraceSession(
    session_id="django@bs4",
    turns=(
        TraceTurn(
            prompt_tokens=50,
            output_tokens=200,
            tools=(TraceTool(name="test", duration_s=0.05, cpu_s=0.02),),
        ),
        TraceTurn(
            prompt_tokens=300,
            output_tokens=150,
            tools=(TraceTool(name="edit", duration_s=0.1),),
        ),
        TraceTurn(prompt_tokens=500, output_tokens=180),
    ),
)


def test_replies_have_the_recorded_length_and_tools_the_recorded_work(tmp_path: Path) -> None:
    steps = script(SESSION, tmp_path, 2.0)["steps"]
    assert [len(step["text"]) // 2 for step in steps] == [80, 30, 60]
    assert steps[0]["calls"] == [{"run": "./run-tool 0.020 0.100 0 1 50"}]
    assert steps[1]["calls"][0]["write"]["path"] == str(tmp_path / "edited-1.txt")
    assert steps[2]["calls"] == []


def test_the_tool_really_runs_and_prints_what_the_context_grew_by(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare_workspace(SESSION, work)
    command = script(SESSION, work, 1.0)["steps"][0]["calls"][0]["run"]
    ran = subprocess.run(["sh", "-c", command], cwd=work, capture_output=True, check=True)
    assert ran.stdout.decode() == filler_text("out:django@bs4", 50) + "\n"


def test_the_task_leads_to_its_script(tmp_path: Path) -> None:
    path = tmp_path / "scripts.jsonl"
    write_scripts(path, [SESSION], [tmp_path], 1.0)
    tool = '\n# Tools\n{"function": {"name": "terminal", "parameters": {}}}<|im_end|>\n'
    reply = ScriptBook.read(path).reply(tool + task_text(SESSION))
    assert f"[[mars:{script_name(SESSION.session_id)}:0]]" in reply
    assert "./run-tool" in reply
