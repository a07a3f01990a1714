# SPDX-License-Identifier: Apache-2.0
"""Make the traces that ship with the package from their public sources, to the byte.

    python scripts/cut_traces.py SOURCES [--out src/mars/traces/public]

SOURCES holds ``thunderagent-sweagent-glm45/public.{replay,text}.jsonl.xz`` and
``kv-cache-tester-weka/public.v6.replay.jsonl.xz``; ``public/PROVENANCE.md`` says where these come
from and what was changed.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import msgspec

from mars.traces.content import common_prefix_tokens, prompt_segments
from mars.traces.importers.thunderagent import UNKNOWN_TOOL, read_thunderagent
from mars.traces.importers.weka import read_weka
from mars.traces.io import write_trace
from mars.traces.schema import TraceSession

NUM_SWE_AGENT = 32
MAX_COMMAND_CHARS = 160

MIN_TURNS, MAX_TURNS = 12, 80
MAX_FIRST_PROMPT_TOKENS = 30_000
MAX_PROMPT_TOKENS = 100_000
MAX_WAIT_S = 3600.0
MIN_SHARED_TOKENS = 2048
MAX_OVERLAP = 0.5


def cut_swe_agent(folder: Path) -> list[TraceSession]:
    """Return one run per task: those whose tools are known, then others, at concurrency 4 if had.

    At concurrency 4 the machine was not crowded, so the tool durations are the tools' own. Replies
    are left out and commands cut to one short line.
    """
    runs = list(
        read_thunderagent(folder / "public.replay.jsonl.xz", folder / "public.text.jsonl.xz")
    )
    runs.sort(key=lambda run: (not _is_classed(run), "@bs4" not in run.session_id, run.session_id))
    chosen: dict[str, TraceSession] = {}
    for run in runs:
        chosen.setdefault(run.task or run.session_id, run)
    kept = sorted(list(chosen.values())[:NUM_SWE_AGENT], key=lambda run: run.session_id)
    return [_without_text(run) for run in kept]


def _is_classed(run: TraceSession) -> bool:
    return any(tool.name != UNKNOWN_TOOL for turn in run.turns for tool in turn.tools)


def _without_text(run: TraceSession) -> TraceSession:
    turns = []
    for turn in run.turns:
        tools = [
            msgspec.structs.replace(tool, command=_one_line(tool.command)) for tool in turn.tools
        ]
        turns.append(msgspec.structs.replace(turn, text=None, tools=tuple(tools)))
    return msgspec.structs.replace(run, turns=tuple(turns))


def _one_line(command: str | None) -> str | None:
    first = (command or "").strip().partition("\n")[0]
    return first[:MAX_COMMAND_CHARS] or None


def cut_claude_code(folder: Path) -> list[TraceSession]:
    """Return moderate sessions, from their beginning, that share a system prompt with another.

    A session more than half of whose blocks an earlier one has is the same work again: left out.
    """
    sessions: list[TraceSession] = []
    for session in read_weka(folder / "public.v6.replay.jsonl.xz"):
        if _is_moderate(session) and all(_overlap(session, s) <= MAX_OVERLAP for s in sessions):
            sessions.append(session)
    shared: set[str] = set()
    for left, right in combinations(sessions, 2):
        common = common_prefix_tokens(prompt_segments(left, 0), prompt_segments(right, 0))
        if common >= MIN_SHARED_TOKENS:
            shared |= {left.session_id, right.session_id}
    return [session for session in sessions if session.session_id in shared]


def _overlap(left: TraceSession, right: TraceSession) -> float:
    ours, theirs = _block_ids(left), _block_ids(right)
    return len(ours & theirs) / min(len(ours), len(theirs))


def _block_ids(session: TraceSession) -> set[int]:
    runs = (run for turn in session.turns for run in turn.blocks or ())
    return {block for first, count in runs for block in range(first, first + count)}


def _is_moderate(session: TraceSession) -> bool:
    waited_s = sum(t.gap_s + sum(c.duration_s for c in t.tools) for t in session.turns)
    return (
        MIN_TURNS <= len(session.turns) <= MAX_TURNS
        and session.turns[0].prompt_tokens <= MAX_FIRST_PROMPT_TOKENS
        and max(turn.prompt_tokens for turn in session.turns) <= MAX_PROMPT_TOKENS
        and waited_s <= MAX_WAIT_S
    )


def main() -> None:
    """Write both traces and say how large they became."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/mars/traces/public"))
    options = parser.parse_args()
    cuts = {
        "swe-agent": cut_swe_agent(options.sources / "thunderagent-sweagent-glm45"),
        "claude-code": cut_claude_code(options.sources / "kv-cache-tester-weka"),
    }
    for name, sessions in cuts.items():
        path = options.out / f"{name}.jsonl.xz"
        num_sessions = write_trace(path, sessions)
        num_turns = sum(len(session.turns) for session in sessions)
        print(f"{path}: {num_sessions} sessions, {num_turns} turns, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
