# SPDX-License-Identifier: Apache-2.0
"""The kinds of agents :mod:`mars.traces.synth` makes: which fits each uses, and what is chosen.

Fits come from ``generator_params.json``. Numbers that no recording gives are marked "chosen".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mars.traces.errors import TraceError
from mars.traces.params import Mixture, draw_mixture, draw_quantiles, generator_params

TAIL_FROM_S = 5.0
TAIL_ALPHA = 1.0
"""Tests longer than 5 s: Pareto of this exponent, so that their 99th percentile is the measured
88 s (a lognormal mixture alone ends at 30 s)."""


@dataclass(frozen=True, slots=True)
class ToolClass:
    """How long the calls of one class last.

    Attributes:
        name: name in the trace.
        mix: relative frequency.
        duration: lognormal mixture, or published quantiles.
        p_timeout: share of calls that end at the client's limit.
        is_heavy_tailed: replace durations above 5 s by a Pareto tail.
    """

    name: str
    mix: float
    duration: Mixture | dict[str, float]
    p_timeout: float = 0.0
    is_heavy_tailed: bool = False

    def draw_s(self, rng: Generator, count: int, limit_s: float) -> NDArray[np.float64]:
        """Draw durations, none above the client's limit."""
        if isinstance(self.duration, dict):
            seconds = draw_quantiles(rng, self.duration, count)
        else:
            seconds = draw_mixture(rng, self.duration, count)
        if self.is_heavy_tailed:
            tail = TAIL_FROM_S * (1.0 + rng.pareto(TAIL_ALPHA, count))
            seconds = np.where(seconds > TAIL_FROM_S, tail, seconds)
        seconds = np.where(rng.random(count) < self.p_timeout, limit_s, seconds)
        return np.minimum(seconds, limit_s)


@dataclass(frozen=True, slots=True)
class Regime:
    """One kind of agent.

    Attributes:
        turns: mixture of turns per session.
        max_turns: the client's own cap.
        first_prompt: quantiles or mixture of the first prompt's tokens.
        shared_tokens: tokens of tools and system prompt that all sessions of one client version
            share, per version; versions are equally frequent.
        append: mixture of tokens that a prompt grows by per turn (the reply included).
        output: mixture of reply tokens.
        tools: the tool classes.
        limit_s: the client's limit on a tool call.
        harness_s: the client's own time per turn, or its quantiles.
        compacted: quantiles of the prompt after a compaction; None: as the first one.
        requests: mixture of turns per human request; None: no human.
        human_gap: mixture of seconds until the next request.
    """

    turns: Mixture
    max_turns: int
    first_prompt: dict[str, float] | Mixture
    shared_tokens: tuple[int, ...]
    append: Mixture
    output: Mixture
    tools: tuple[ToolClass, ...]
    limit_s: float
    harness_s: dict[str, float] | float
    compacted: dict[str, float] | None = None
    requests: Mixture | None = None
    human_gap: Mixture | None = None


REGIMES = ("light", "mixed", "heavy", "interactive")


@cache
def regime(name: str) -> Regime:
    """Return a regime by name.

    - light: SWE-agent on Django tasks; tools are 1 to 3% of a crowded server's time.
    - mixed: Claude Code, automated, on SWE-rebench tasks; tools are 44% of the time.
    - heavy: terminal tasks under a 30 s limit that one call in twelve reaches.
    - interactive: Claude Code with a human, who pauses, approves, and whose context is compacted.

    Raises:
        TraceError: there is no such regime.
    """
    makers = {"light": _light, "mixed": _mixed, "heavy": _heavy, "interactive": _interactive}
    if name not in makers:
        raise TraceError(
            f"there is no regime {name!r}. Choose one of {', '.join(REGIMES)}.", field="regime"
        )
    return makers[name](generator_params())


# Durations: quantiles of each class in the 33 ThunderAgent runs whose trajectory was kept; the
# published fits have too few points for the KS test. Shares: those with which the classes together
# give the durations of all 99 runs (the 33 are the shorter ones and run more scripts).
_LIGHT_RANKS = ("p5", "p25", "p50", "p75", "p90", "p99")
_LIGHT_TOOLS = {
    "read": (0.42, (0.142, 0.145, 0.149, 0.158, 0.171, 0.2)),
    "edit": (0.18, (0.145, 0.15, 0.154, 0.162, 0.176, 0.25)),
    "python": (0.26, (0.142, 0.294, 0.341, 0.564, 0.8, 3.2)),
    "test": (0.03, (0.129, 0.134, 0.323, 0.742, 1.27, 22.1)),
    "search": (0.11, (0.107, 0.108, 0.114, 0.143, 2.0, 2.8)),
}
_LIGHT_FIRST_TOKENS = {
    "p5": 365.0,
    "p25": 420.0,
    "p50": 551.0,
    "p75": 675.0,
    "p90": 1187.0,
    "p95": 1619.0,
    "p99": 2017.0,
}
_LIGHT_GAP_S = {"p5": 0.192, "p25": 0.311, "p50": 0.452, "p75": 0.586, "p90": 0.681, "p99": 1.09}


def _light(params: dict[str, Any]) -> Regime:
    return Regime(
        turns=params["turns_per_session"]["sweagent_glm45_swebench_lite"],
        max_turns=150,
        first_prompt=_LIGHT_FIRST_TOKENS,
        shared_tokens=(0,),
        append=params["append_tokens_per_turn"]["sweagent"],
        output=params["output_tokens_per_turn"]["sweagent"],
        tools=tuple(
            ToolClass(name, mix, dict(zip(_LIGHT_RANKS, seconds, strict=True)))
            for name, (mix, seconds) in _LIGHT_TOOLS.items()
        ),
        limit_s=30.0,
        harness_s=_LIGHT_GAP_S,
    )


_CLEAN_NAMES = {
    "read": "read",
    "edit_write_todo": "edit",
    "search_ls_grep": "search",
    "git": "git",
    "python_script": "python",
    "test": "test",
    "install_build": "install",
    "subagent_task": "subagent",
}


def _clean_tools(params: dict[str, Any]) -> tuple[ToolClass, ...]:
    fits = params["tool_classes_swe_clean"]
    return tuple(
        ToolClass(name, fits[key]["mix"], fits[key]["dur"], is_heavy_tailed=name == "test")
        for key, name in _CLEAN_NAMES.items()
    )


def _mixed(params: dict[str, Any]) -> Regime:
    return Regime(
        turns=params["turns_per_session"]["claudecode_haiku45_swerebench"],
        max_turns=150,
        first_prompt=params["first_prompt_tokens"]["claudecode_automated"],
        shared_tokens=(13_000,),  # chosen: just below the first prompts, which vary by 600 tokens
        append=params["append_tokens_per_turn"]["claudecode_glm"],
        output=params["output_tokens_per_turn"]["claudecode_glm"],
        tools=_clean_tools(params),
        limit_s=120.0,  # Claude Code's default
        harness_s=0.1,  # chosen
    )


_HEAVY_NAMES = {
    "install": "install",
    "script": "python",
    "test": "test",
    "search_read": "search",
    "write": "edit",
    "network": "network",
    "other": "shell",
}


def _heavy(params: dict[str, Any]) -> Regime:
    fits = params["tool_classes_terminal_bench"]
    return Regime(
        turns=params["turns_per_session"]["miniswe_sonnet4_terminalbench"],
        max_turns=100,
        # No token counts were recorded; the agent and its prompts resemble SWE-agent's.
        first_prompt=params["first_prompt_tokens"]["sweagent"],
        shared_tokens=(0,),
        append=params["append_tokens_per_turn"]["sweagent"],
        output=params["output_tokens_per_turn"]["sweagent"],
        tools=tuple(
            ToolClass(name, fits[key]["mix"], fits[key]["dur"], p_timeout=fits[key]["p_timeout"])
            for key, name in _HEAVY_NAMES.items()
        ),
        limit_s=30.0,
        harness_s=0.1,  # chosen
    )


# Read off the 409 kv-cache-tester sessions. Waits before tool results, permission prompts
# included; 23% of them are 0 on a clock of one second.
_WEKA_TOOL_GAP_S = {
    "p20": 1e-4,
    "p25": 0.05,
    "p50": 0.63,
    "p75": 7.1,
    "p80": 15.9,
    "p90": 90.7,
    "p99": 602.0,
}
# First prompts: a quarter of the recordings begin in the middle of a conversation.
_WEKA_FIRST_TOKENS = {
    "p5": 12161.0,
    "p25": 17670.0,
    "p50": 19643.0,
    "p75": 47564.0,
    "p90": 103151.0,
    "p99": 260532.0,
}
# What is left after a compaction that lasts. (Three in four of the 4.3% of turns whose prompt
# shrinks are one-turn side requests, after which the conversation goes on as before.)
_WEKA_COMPACTED_TOKENS = {"p10": 13548.0, "p25": 25378.0, "p50": 31020.0, "p90": 62241.0}


def _interactive(params: dict[str, Any]) -> Regime:
    shared = params["first_prompt_tokens"]["shared_tools_plus_system_tokens"]
    return Regime(
        turns=params["turns_per_session"]["claudecode_real_users_weka"],
        max_turns=340,
        first_prompt=_WEKA_FIRST_TOKENS,
        compacted=_WEKA_COMPACTED_TOKENS,
        shared_tokens=(shared["p10"], shared["p50"], shared["p50"], shared["p90"]),
        append=params["append_tokens_per_turn"]["claudecode_real_users"],
        output=params["output_tokens_per_turn"]["claudecode_real_users"],
        tools=(ToolClass("tool", 1.0, _WEKA_TOOL_GAP_S),),
        limit_s=120.0,
        harness_s=0.0,
        requests=params["turns_per_session"]["turns_per_human_request_weka"],
        human_gap=params["human_gap_s"]["weka"],
    )
