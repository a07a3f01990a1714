# SPDX-License-Identifier: Apache-2.0
"""Which scheduling policy passes which conformance property, from the tests themselves.

    python scripts/conformance_table.py [--docs docs/policies.md]

Runs the tests below and prints a table: a line per property, a column per policy; ``yes`` where
the test passed, ``-`` where the policy does not claim the property and the test was skipped, ``NO``
where it failed. With ``--docs`` the table replaces what stands there between two marks.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from mars.core.policy import scheduling_policies

MARK = "<!-- {} of scripts/conformance_table.py -->"
ROOT = Path(__file__).parents[1]

PROPERTIES = {
    "conformance/test_scheduling.py": {
        "test_order_is_total_and_does_not_depend_on_the_input_order": "total order",
        "test_rank_is_pure": "asking changes nothing",
        "test_nothing_raises_on_odd_inputs": "bears odd inputs",
        "test_state_is_bounded_over_10000_sessions": "state bounded over 10,000 sessions",
        "test_nobody_starves": "a large session among endless small ones is served within 450 s",
        "test_everybody_ends": "everybody ends under overload",
        "test_a_recomputed_turn_is_not_forgotten": "a preempted turn is served like any other",
    },
    "conformance/test_fairness.py": {
        "test_overtaking_is_bounded_under_adversarial_arrivals": "proved bound on overtaking, "
        "any arrivals",
        "test_overtaking_is_bounded_in_a_flood_of_short_turns": "the same, in a flood",
        "test_a_warm_return_goes_before_cold_starts": "a warm return goes before cold starts",
    },
    "conformance/test_partial_prefills.py": {
        "test_half_computed_prompts_do_not_evict_one_another": "partial prefills bounded",
    },
    "engine/vllm/test_scheduler.py": {
        "test_no_block_is_lost_and_every_turn_ends_under_pressure": "in vLLM's scheduler: no block "
        "lost, every turn ends",
    },
    "engine/vllm/test_storm.py": {
        "test_nothing_is_lost_whatever_happens": "in vLLM's scheduler: sound in random weather",
    },
}
"""Test files under tests/, their tests with a policy as parameter, and what these show."""


class Outcomes:
    """A pytest plug-in that keeps how each test of a policy ended."""

    def __init__(self) -> None:
        self.by_test: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._policy_of: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which test is of which policy: its parameter ``name`` or ``policy``."""
        for item in items:
            parameters = item.callspec.params  # type: ignore[attr-defined]
            self._policy_of[item.nodeid] = parameters.get("name") or parameters["policy"]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test ended."""
        if report.when == "call" or report.outcome != "passed":
            test = report.nodeid.partition("::")[2].partition("[")[0]
            self.by_test[test][self._policy_of[report.nodeid]].add(report.outcome)


def verdict(outcomes: set[str]) -> str:
    """One cell of the table."""
    if not outcomes:
        return "?"
    if "failed" in outcomes:
        return "**NO**"
    return "yes" if outcomes == {"passed"} else "-"


def table(found: Outcomes) -> str:
    """The table as Markdown."""
    names = scheduling_policies.names()
    lines = ["| property | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("| --- |" + " :---: |" * len(names))
    for tests in PROPERTIES.values():
        for test, title in tests.items():
            cells = [verdict(found.by_test[test][name]) for name in names]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--docs", type=Path, help="page to put the table into")
    options = parser.parse_args()
    found = Outcomes()
    tests = [f"{ROOT}/tests/{file}::{test}" for file, named in PROPERTIES.items() for test in named]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[found])
    text = table(found)
    print(text)
    if options.docs:
        page = options.docs.read_text(encoding="utf-8")
        begin, end = MARK.format("begin"), MARK.format("end")
        if begin not in page or end not in page:
            raise SystemExit(f"{options.docs}: lacks the marks {begin!r} and {end!r}")
        head, _, rest = page.partition(begin)
        options.docs.write_text(
            f"{head}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8"
        )
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
