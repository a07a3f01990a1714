# SPDX-License-Identifier: Apache-2.0
"""The policy protocols, their defaults, and the registry that finds one by name.

A scheduling policy decides inside the engine, an admission policy in the control plane,
a tool policy in the tool runtime. All are pure given their own state: they never block,
never raise, never read a clock.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from mars.core.model import ActiveSet, HeldSession, Load, Session, ToolCall, Turn
from mars.core.packing import in_arrival_order
from mars.core.retention import FlatCost, PrefillCost, PriceTable

Rank = tuple[float, ...]
"""Order key: smallest is served first; largest is preempted and evicted first."""


class SchedulingPolicy(Protocol):
    """Answers the engine's questions about turns and the KV of their sessions."""

    name: str
    evicts_by_value: bool
    """Free cached blocks are evicted by ``retention_value`` instead of LRU."""
    shrinks_chunks: bool
    """A prefill chunk that does not fit is cut to what fits before anyone is preempted."""
    bounds_partial_prefills: bool
    """A prefill starts only if it and the unfinished ones fit in memory together."""
    keeps_engine_order: bool
    """The engine's own queue, order and eviction stay untouched (the FCFS reference)."""
    has_levels: bool
    """Turns have a ``level``, whose changes are told."""

    def level(self, turn: Turn, now: float) -> int:
        """Present level of a turn, 0 first; asked only of a policy that has levels."""
        ...

    def rank(self, turn: Turn, now: float) -> Rank:
        """Service order; the last is preempted first. Total, stable within a step."""
        ...

    def on_step(self, turns: Iterable[Turn], load: Load, now: float) -> None:
        """A step begins; ``turns`` are all that the engine has. Called before ``rank``."""
        ...

    def may_start(self, turn: Turn) -> bool:
        """Whether the waiting turn ranked first may start now, memory permitting.

        Not asked when nothing runs: the engine never idles while turns wait.
        """
        ...

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        """Most prefill tokens of this turn in one step, or None for no cap."""
        ...

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """What keeping this idle session's prefix is worth per block; <= 0: release."""
        ...

    def take_revalued(self) -> Collection[str] | None:
        """Sessions whose ``retention_value`` may have changed since the last call, arrivals
        and ends of turns included; None: any, as values move with time."""
        ...

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        """Whether to hold references on the KV of a session whose turn just ended, and
        asked again each step while held; False leaves the blocks free but cached."""
        ...

    def surely_holds(self, session: Session, load: Load) -> tuple[float, float]:
        """``(t, s)``: ``holds_kv`` is True before ``t + s x used blocks``, whatever else is.

        It is not asked meanwhile, as long as nothing happens to the session; -inf: always ask.
        """
        ...

    def yields_to(self, held: Session, turn: Turn, load: Load, now: float) -> bool:
        """Whether KV held for ``held`` may be released so that waiting ``turn`` starts.

        A running turn may always take it: held KV goes before anyone is preempted.
        """
        ...

    def on_submit(self, turn: Turn, now: float) -> None:
        """A turn entered the engine."""
        ...

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        """A step served ``num_tokens`` of this turn (called after the step is planned)."""
        ...

    def on_preempt(self, turn: Turn, now: float) -> None:
        """A running turn lost its KV and waits again."""
        ...

    def on_finish(self, turn: Turn, now: float) -> None:
        """A turn left the engine (finished or aborted)."""
        ...

    def on_end(self, session: Session) -> None:
        """A session is forgotten (it ended, or was idle for too long): learn from it."""
        ...


class AdmissionPolicy(Protocol):
    """Decides how many sessions may be active, and which held one goes next."""

    name: str
    overtaking_s: float
    """The bound on waiting that it claims: who came so many seconds later never goes before
    one that is held for the first time; infinity claims nothing."""

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        """Session ids to admit now, in order. Called at each arrival, end and tick."""
        ...

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        """Active sessions to stop at their turn boundary, in order; those named before and
        not yet stopped go on unless they are named again. Called at each tick, after
        ``on_tick``; a paused session is among those that ``admit`` is asked about."""
        ...

    def window(self, load: Load, now: float) -> float:
        """How many sessions may be active (``math.inf``: no bound). For display too."""
        ...

    def on_end(self, session: Session, now: float) -> None:
        """A session ended: learn from it."""
        ...

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        """One control interval passed: move the window."""
        ...

    def state(self) -> dict[str, Any]:
        """Small, JSON-ready account of why the window is what it is."""
        ...


class ToolPolicy(Protocol):
    """Orders the tool queue and says how many tools run at once."""

    name: str

    def on_queue(self, call: ToolCall, session: Session, now: float) -> None:
        """A tool call was asked for and joins the queue; called once, before ``rank``."""
        ...

    def rank(self, call: ToolCall, session: Session, now: float) -> Rank:
        """Order of the tool queue; smallest starts first."""
        ...

    def slots(self, load: Load, now: float) -> int | None:
        """How many tools may run at once, or None for the configured number."""
        ...

    def is_express(self, call: ToolCall, now: float) -> bool:
        """Whether a call is so surely short that it may start though all slots are taken."""
        ...

    def on_finish(self, call: ToolCall, now: float) -> None:
        """A tool call left: it ended (``finished_at`` set: learn from it) or was given up."""
        ...

    def on_session_end(self, session_id: str, now: float) -> None:
        """A session ended: forget it, and learn how many calls it made."""
        ...


class BaseToolPolicy:
    """Defaults of a tool policy: first come, first served, on the configured slots."""

    name: ClassVar[str] = "base"

    def on_queue(self, call: ToolCall, session: Session, now: float) -> None: ...

    def rank(self, call: ToolCall, session: Session, now: float) -> Rank:
        return (call.queued_at,)

    def slots(self, load: Load, now: float) -> int | None:
        return None

    def is_express(self, call: ToolCall, now: float) -> bool:
        return False

    def on_finish(self, call: ToolCall, now: float) -> None: ...

    def on_session_end(self, session_id: str, now: float) -> None: ...


class BasePolicy:
    """Defaults of a scheduling policy: FCFS, plain LRU, nothing held, nothing capped.

    Args:
        cost: prices prefill in seconds (``mars.core.cost.CostModel`` or alike); without
            one, the flat 2e-4 s per token of InferCept's port in the authors' preview.
    """

    name: ClassVar[str] = "base"
    evicts_by_value: bool = False
    shrinks_chunks: bool = False
    bounds_partial_prefills: bool = False
    keeps_engine_order: bool = False
    has_levels: bool = False

    def __init__(self, *, cost: PrefillCost | None = None) -> None:
        self.cost = PriceTable(cost or FlatCost())

    def level(self, turn: Turn, now: float) -> int:
        return 0

    def rank(self, turn: Turn, now: float) -> Rank:
        return (turn.arrival_time,)

    def on_step(self, turns: Iterable[Turn], load: Load, now: float) -> None: ...

    def may_start(self, turn: Turn) -> bool:
        return True

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        return None

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        return 0.0

    def take_revalued(self) -> Collection[str] | None:
        return None

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        return False

    def surely_holds(self, session: Session, load: Load) -> tuple[float, float]:
        return (-math.inf, 0.0)

    def yields_to(self, held: Session, turn: Turn, load: Load, now: float) -> bool:
        return True

    def on_submit(self, turn: Turn, now: float) -> None: ...

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None: ...

    def on_preempt(self, turn: Turn, now: float) -> None: ...

    def on_finish(self, turn: Turn, now: float) -> None: ...

    def on_end(self, session: Session) -> None: ...


class BaseAdmission:
    """Defaults of an admission policy: everybody at once, first come first served."""

    name: ClassVar[str] = "base"
    overtaking_s: float = math.inf

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        room = self.window(load, now) - len(active)
        ids = [h.session.session_id for h in in_arrival_order(held)]
        return ids if room == math.inf else ids[: max(0, int(room))]

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        return []

    def window(self, load: Load, now: float) -> float:
        return math.inf

    def on_end(self, session: Session, now: float) -> None: ...

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}


class UnknownPolicyError(ValueError):
    """No policy of that name; the message lists those there are."""


_T = TypeVar("_T")


class Registry:
    """Names to classes; a dotted path (``pkg.module.Class``) needs no registration."""

    def __init__(self, what: str, modules: Sequence[str]) -> None:
        self._what = what
        self._modules = tuple(modules)
        self._classes: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[type[_T]], type[_T]]:
        """Class decorator; a name taken twice is an error."""

        def add(cls: type[_T]) -> type[_T]:
            if name in self._classes:
                raise ValueError(f"{self._what} {name!r} is registered twice")
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def create(self, spec: str, offers: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Make a policy from ``name``, ``name:ARG`` or a dotted path.

        ``offers`` are what the caller could give (a cost model, say): only those that the
        class has a parameter for are passed.

        Raises:
            UnknownPolicyError: no such name, module or class, or an option it lacks.
        """
        self._load()
        name, _, argument = spec.partition(":")
        cls = self._classes.get(name) or self._import(name)
        arguments = [_number(argument)] if argument else []
        accepted = inspect.signature(cls).parameters
        offered = {k: v for k, v in (offers or {}).items() if k in accepted}
        try:
            return cls(*arguments, **(offered | options))
        except TypeError as error:
            raise UnknownPolicyError(f"{self._what} {spec!r}: {error}") from error

    def _import(self, path: str) -> type[Any]:
        module, _, attribute = path.rpartition(".")
        if not module:
            raise UnknownPolicyError(
                f"unknown {self._what} {path!r}; known: {', '.join(sorted(self._classes))}, "
                "or a dotted path to a class"
            )
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownPolicyError(f"{self._what} {path!r}: {error}") from error

    def _load(self) -> None:
        for module in self._modules:
            importlib.import_module(module)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


scheduling_policies = Registry("scheduling policy", ["mars.core.policies"])
admission_policies = Registry("admission policy", ["mars.core.admissions"])
tool_policies = Registry("tool policy", ["mars.core.toolqueue"])
