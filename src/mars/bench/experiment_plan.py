# SPDX-License-Identifier: Apache-2.0
"""An experiment file, and the cells it stands for: machine x load x contender x cap x seed.

Equal treatment is a property of the plan, not of whoever writes the file: a contender names
only its policies and their options. Sessions, machine, caps and cost curve belong to the
point, and the cells of a point and seed differ in nothing else.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mars.bench.scenario import ScenarioError
from mars.sim.run import Machine, SimConfig
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, require_turns

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Label = Annotated[str, Meta(min_length=1, pattern=r"^[^|\n]+$")]
GIVEN = ("cost", "future")
"""What every policy is offered alike; a contender cannot bring its own."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of agent in a workload: recorded sessions, or synthetic ones."""

    trace: str | None = None
    """A ``mars.trace/1`` file, or ``public:NAME``."""
    regime: str | None = None
    """Instead of a trace: a regime of :func:`mars.traces.synth.synth`."""
    share: Positive = 1.0
    """Of the workload's sessions, against the shares of the other parts."""
    long_context: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Synthetic only: share of sessions with a very long first prompt and few turns."""
    max_turns: Count | None = None
    max_gap_s: Seconds | None = None
    max_tool_s: Seconds | None = None
    max_prompt_tokens: Count | None = None


class Load(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sessions, how many, and the rates (sessions per second) at which they come.

    ``low_rate_per_s`` is always run and always shown: where nothing competes, a policy must
    cost nothing.
    """

    sessions: Count
    low_rate_per_s: Positive
    rates_per_s: tuple[Positive, ...] = ()
    arrivals: str = "poisson"
    is_unique: bool = False
    """Refuse to use a recorded session twice."""
    parts: tuple[Part, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """All loads, the lowest first."""
        return (self.low_rate_per_s, *self.rates_per_s)


class Box(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that is modelled; None: the profile's value, or one slot per core."""

    label: Label
    profile: str
    cpus: Count = 8
    tool_slots: Count | None = None
    kv_tokens: Count | None = None
    host_kv_tokens: Count | None = None


class Contender(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policies of one line of the comparison.

    ``sweeps_caps``: also run under each static cap instead of its own admission. Unless
    said, whoever has no admission of its own is.
    """

    label: Label
    policy: str
    admission: str = "none"
    tool_policy: str = "fifo"
    policy_options: dict[str, Any] = {}
    admission_options: dict[str, Any] = {}
    tool_policy_options: dict[str, Any] = {}
    sweeps_caps: bool | None = None
    is_variant: bool = False
    """Ours in part, or changed: shown, but no baseline that ours is held against."""
    knows_trace: bool = False
    """Its policy is told the future (:mod:`mars.bench.oracle`): a reference, and a variant."""
    tool_names: Literal["recorded", "missing", "shuffled"] = "recorded"
    """What policies are told of tools: their names, nothing, or names drawn anew per call."""

    @property
    def is_swept(self) -> bool:
        """Whether the static caps are tried with it."""
        return self.admission == "none" if self.sweeps_caps is None else self.sweeps_caps


class Experiment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file under ``scenarios/``."""

    title: str
    lead: str = ""
    """What is asked, and what to know when reading the answer."""
    reference: str
    """Label of the contender that ratios refer to."""
    ours: str | None = None
    """Label of the contender for whom the report states targets."""
    finds_knee: bool = False
    """Also run the load at which the strongest baseline's mean slowdown is 3."""
    seeds: Count = 5
    first_seed: int = 1
    caps: tuple[Count, ...] = ()
    """Static caps, the same for everyone who is swept."""
    workload: Load
    machines: tuple[Box, ...]
    contenders: tuple[Contender, ...]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Labels of the contenders that ours is held against."""
        return tuple(
            c.label
            for c in self.contenders
            if c.label != self.ours and not (c.is_variant or c.knows_trace)
        )

    def seeds_run(self, num_seeds: int | None = None) -> range:
        """The seeds; ``num_seeds`` in place of the file's number."""
        return range(self.first_seed, self.first_seed + (num_seeds or self.seeds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulation; ``cap`` is None for a contender as published."""

    machine: str
    rate_per_s: float
    contender: str
    cap: int | None
    seed: int
    config: SimConfig
    tool_names: str = "recorded"
    knows_trace: bool = False

    def __str__(self) -> str:
        cap = "" if self.cap is None else f", cap {self.cap}"
        where = f"{self.machine} at {self.rate_per_s:g}/s, seed {self.seed}"
        return f"{self.contender}{cap} on {where}"


def load_experiment(path: Path | str) -> Experiment:
    """Read an experiment.

    Raises:
        ScenarioError: no such file, not TOML, an unknown key, or a value that makes no sense.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        experiment = msgspec.convert(tree, Experiment)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{path}: {error}") from error
    for problem in _problems(experiment):
        raise ScenarioError(f"{path}: {problem}")
    return experiment


def _problems(experiment: Experiment) -> Iterator[str]:
    yield from _workload_problems(experiment.workload)
    labels = [c.label for c in experiment.contenders]
    machines = [m.label for m in experiment.machines]
    for what, names in (("contenders", labels), ("machines", machines)):
        if not names:
            yield f"no [[{what}]]; name at least one"
        if len(set(names)) < len(names):
            yield f"{what}: two have the same label; results could not be told apart"
    for key in ("reference", "ours"):
        label = getattr(experiment, key)
        if label is not None and label not in labels:
            yield f"{key} = {label!r} is no contender; there are {labels}"
    if experiment.finds_knee and experiment.ours is None:
        yield "finds_knee: say with `ours` for whom the comparison at the knee is made"
    if len(set(experiment.caps)) < len(experiment.caps):
        yield "caps: one stands twice"
    for contender in experiment.contenders:
        yield from _contender_problems(contender, experiment.caps)


def _contender_problems(contender: Contender, caps: tuple[int, ...]) -> Iterator[str]:
    for name in ("policy_options", "admission_options", "tool_policy_options"):
        own = [key for key in getattr(contender, name) if key in GIVEN]
        if own:
            yield (
                f"contender {contender.label!r}: {name}.{own[0]}: every policy is offered "
                "the machine's; leave it out"
            )
    if contender.is_swept and contender.admission in {f"cap:{cap}" for cap in caps}:
        yield f"contender {contender.label!r}: {contender.admission} is in caps; leave its own out"


def _workload_problems(load: Load) -> Iterator[str]:
    if not load.parts:
        yield "no [[workload.parts]]; name a trace or a regime"
    for part in load.parts:
        if (part.trace is None) == (part.regime is None):
            yield "workload.parts: give either trace or regime"
        if part.trace is not None and part.long_context:
            yield f"workload.parts: long_context is for regimes, not for {part.trace}"
    if list(load.rates) != sorted(set(load.rates)):
        yield "workload: rates_per_s must ascend, and low_rate_per_s be below them"


def cells(
    experiment: Experiment,
    num_seeds: int | None = None,
    knees: Mapping[str, Sequence[float]] | None = None,
) -> list[Cell]:
    """All cells, seed by seed: what an interrupted run leaves is whole comparisons.

    Args:
        experiment: the file.
        num_seeds: in place of the file's number.
        knees: loads beyond the file's, by machine.
    """
    return [
        Cell(
            machine=box.label,
            rate_per_s=rate,
            contender=contender.label,
            cap=cap,
            seed=seed,
            config=_config(box, contender, cap, seed),
            tool_names=contender.tool_names,
            knows_trace=contender.knows_trace,
        )
        for seed in experiment.seeds_run(num_seeds)
        for box in experiment.machines
        for rate in (*experiment.workload.rates, *(knees or {}).get(box.label, ()))
        for contender in experiment.contenders
        for cap in (None, *(experiment.caps if contender.is_swept else ()))
    ]


def _config(box: Box, contender: Contender, cap: int | None, seed: int) -> SimConfig:
    is_own = cap is None
    return SimConfig(
        policy=contender.policy,
        policy_options=contender.policy_options,
        admission=contender.admission if is_own else f"cap:{cap}",
        admission_options=contender.admission_options if is_own else {},
        tool_policy=contender.tool_policy,
        tool_policy_options=contender.tool_policy_options,
        machine=box.profile,
        num_cpus=box.cpus,
        tool_slots=box.tool_slots,
        kv_tokens=box.kv_tokens,
        host_kv_tokens=box.host_kv_tokens or 0,
        seed=seed,
    )


def check_machines(experiment: Experiment) -> None:
    """Load every profile once, before hours of work.

    Raises:
        ProfileError: no such profile.
        ScenarioError: a KV pool that holds nothing.
    """
    for cell in cells(experiment, 1):
        try:
            Machine.of(cell.config)
        except ValueError as error:
            raise ScenarioError(f"machine {cell.machine!r}: {error}") from error


def choose_sessions(load: Load, seed: int, rate_per_s: float) -> list[TraceSession]:
    """The sessions of one seed at one rate, in order of arrival.

    Another rate has the same sessions in the same pattern, stretched, so loads are paired,
    too.

    Raises:
        TraceError: a trace cannot be read, or nothing fits.
        ScenarioError: sessions that must be unique are too few.
    """
    counts = _counts([part.share for part in load.parts], load.sessions)
    chosen: list[TraceSession] = []
    for part, count in zip(load.parts, counts, strict=True):
        if count:
            chosen += _part_sessions(part, count, seed, is_unique=load.is_unique)
    return sample(_mixed(chosen, seed), seed=seed, rate=rate_per_s, arrivals=load.arrivals)


def _part_sessions(part: Part, count: int, seed: int, *, is_unique: bool) -> list[TraceSession]:
    bounds: dict[str, Any] = {
        "max_turns": part.max_turns,
        "max_gap_s": part.max_gap_s,
        "max_tool_s": part.max_tool_s,
    }
    if part.trace is None:
        from mars.traces.synth import MAX_PROMPT_TOKENS, synth

        made = synth(
            count,
            seed=seed,
            regime_name=part.regime or "",
            long_context=part.long_context,
            max_prompt_tokens=part.max_prompt_tokens or MAX_PROMPT_TOKENS,
        )
        return sample(made, seed=seed, arrivals="together", **bounds)
    bounds["max_prompt_tokens"] = part.max_prompt_tokens
    recorded = list(require_turns(read(part.trace)))
    if is_unique and len(recorded) < count:
        raise ScenarioError(
            f"workload: {count} unique sessions asked of {part.trace}, which has "
            f"{len(recorded)}; lower its share, or use a regime"
        )
    return sample(recorded, count, seed=seed, arrivals="together", **bounds)


def disguise(sessions: Sequence[TraceSession], tool_names: str, seed: int) -> list[TraceSession]:
    """The same sessions under the tool names that policies are to see.

    Args:
        sessions: as recorded.
        tool_names: as in :class:`Contender`.
        seed: of the draw of shuffled names; they come from all calls, so classes say nothing.
    """
    if tool_names == "recorded":
        return list(sessions)
    names = [tool.name for s in sessions for turn in s.turns for tool in turn.tools]
    if tool_names == "missing":
        names = ["tool"] * len(names)
    else:
        random.Random(f"names/{seed}").shuffle(names)
    drawn = iter(names)
    return [
        msgspec.structs.replace(
            session,
            turns=tuple(
                msgspec.structs.replace(
                    turn,
                    tools=tuple(
                        msgspec.structs.replace(tool, name=next(drawn)) for tool in turn.tools
                    ),
                )
                for turn in session.turns
            ),
        )
        for session in sessions
    ]


def read(trace: str) -> list[TraceSession]:
    """All sessions of a trace.

    Raises:
        TraceError: it cannot be read.
    """
    from mars.traces.io import read_trace

    return list(read_trace(trace))


def _mixed(sessions: list[TraceSession], seed: int) -> list[TraceSession]:
    """Shuffle the parts into one another, the same way at every rate."""
    import numpy as np

    order = np.random.default_rng([seed, 0x317]).permutation(len(sessions))
    return [sessions[i] for i in order]


def _counts(shares: list[float], total: int) -> list[int]:
    """Split ``total`` in these proportions, largest remainders first."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts
