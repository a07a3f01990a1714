# SPDX-License-Identifier: Apache-2.0
"""Nothing of a session stays behind; ``benchmarks/session_memory.py`` is the long run."""

import gc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.core.cost import CostModel
from mars.core.model import Session, Turn
from mars.engine.vllm.crowd import NAME, Crowd
from mars.profiles import load_profile

pytestmark = pytest.mark.vllm

COST: CostModel = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost


def containers_that_name_a_session() -> list[str]:
    """Whatever holds the id of a session or of one of its turns."""
    found: list[str] = []
    for one in gc.get_objects():
        # Not isinstance(): asking a lazily loaded module for its class loads it.
        if type(one).__name__ in {"dict", "defaultdict", "OrderedDict", "Counter"}:
            entries: list[Any] = [*one.keys(), *one.values()]
        elif type(one) in {list, set, tuple, frozenset}:
            entries = list(one)
        else:
            continue
        names = [x for x in entries if type(x) is str and x.startswith(NAME) and x != NAME]
        if names:
            found.append(f"{type(one).__name__} of {len(one)}: {names[:3]}")
    return found


@pytest.mark.parametrize("policy", ["mars-paper", "mars"])
def test_after_3000_sessions_nothing_names_one(tmp_path: Path, policy: str) -> None:
    crowd = Crowd(policy, tmp_path, COST)
    crowd.run(3000)
    scheduler: Any = crowd.scheduler
    known = len(scheduler._co.sessions)
    assert known <= 3000 / 2
    crowd.go_quiet()
    assert not scheduler._co.sessions
    assert not scheduler._co.held
    scheduler.check_integrity()
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    assert kinds.count(Session) == kinds.count(Turn) == 0
    assert containers_that_name_a_session() == []
