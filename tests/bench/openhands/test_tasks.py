# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from mars.bench.openhands.plan import prepare_workspace, script, task_text
from mars.bench.openhands.tasks import read_tasks
from mars.bench.scenario import ScenarioError

FIXTURE = Path(__file__).parents[2] / "traces" / "fixtures" / "mas_task.jsonl"


def written(tmp_path: Path, **fields: object) -> Path:
    path = tmp_path / "tasks.jsonl"
    line = {"schema": "mas_task_v1", "task_id": "t", "payload": {"text": "Do it."}} | fields
    path.write_text(json.dumps(line))
    return path


def test_a_task_says_what_to_do_and_brings_its_files(tmp_path: Path) -> None:
    files = [{"path": "sub/a.txt", "content": "é"}]
    (task,) = read_tasks(written(tmp_path, workspace_init=files), None, 1.0, seed=1)
    assert task_text(task) == "Do it.\n[[mars:t]]"
    prepare_workspace(task, tmp_path / "work")
    assert (tmp_path / "work/sub/a.txt").read_text() == "é"
    assert [step["calls"] for step in script(task, tmp_path, 1.0)["steps"]] == [[]]


def test_a_replay_section_scripts_the_replies(tmp_path: Path) -> None:
    turns = [
        {"prompt_tokens": 900, "output_tokens": 30},
        {"prompt_tokens": 1000, "output_tokens": 9},
    ]
    (task,) = read_tasks(written(tmp_path, replay={"turns": turns}), None, 1.0, seed=1)
    assert len(script(task, tmp_path, 1.0)["steps"]) == 2


def test_a_repository_is_copied_or_missed_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task, _) = read_tasks(FIXTURE, None, 1.0, seed=1)
    monkeypatch.setenv("MARS_BENCHMARK_ROOT", str(tmp_path / "repositories"))
    with pytest.raises(ScenarioError, match="repo_cache_path .* is not a folder"):
        prepare_workspace(task, tmp_path / "work")
    (tmp_path / "repositories" / "x").mkdir(parents=True)
    (tmp_path / "repositories" / "x" / "code.py").write_text("x = 1\n")
    prepare_workspace(task, tmp_path / "work")
    assert (tmp_path / "work" / "code.py").exists()
    assert (tmp_path / "work" / "problem_statement.txt").read_text() == "Fix it."


def test_a_task_without_words_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, payload={"number": 1})
    with pytest.raises(ScenarioError, match="payload of 't' has none of problem_statement"):
        read_tasks(path, None, 1.0, seed=1)
