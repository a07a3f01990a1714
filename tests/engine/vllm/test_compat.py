# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from mars.engine.vllm.compat import (
    PHRASES,
    SEAMS,
    UnsupportedEngineError,
    abilities,
    check_config,
    check_seams,
    missing_seams,
    vllm_version,
)
from mars.engine.vllm.scheduler import MarsScheduler

pytestmark = pytest.mark.vllm

DOCS = Path(__file__).parents[3] / "docs" / "vllm.md"


def test_the_installed_vllm_has_every_seam() -> None:
    check_seams()
    assert vllm_version() != "unknown"


def test_an_old_vllm_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedEngineError, match=r"0\.29\.1 is older.*0\.30 to 0\.33.*upgrade"):
        check_seams("0.29.1")


def test_a_new_vllm_with_every_seam_runs() -> None:
    check_seams("0.99.0")


SEAM_LIST = [(owner, name) for owner, names in SEAMS.items() for name in names]


@pytest.mark.parametrize(("owner", "name"), SEAM_LIST, ids=lambda x: getattr(x, "__name__", x))
def test_each_missing_seam_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    for kind in owner.__mro__:
        if name in vars(kind) and kind is not object:
            monkeypatch.delattr(kind, name)
    with pytest.raises(UnsupportedEngineError) as refused:
        check_seams()
    message = str(refused.value)
    assert f"{owner.__name__}.{name}" in message
    assert vllm_version() in message
    assert "run without --scheduler-cls" in message
    assert "mars gateway" in message


def rewritten() -> Callable[..., Any]:
    """A function whose source says nothing of what MARS relies on."""

    def other(*_: object) -> None:
        raise NotImplementedError

    return other


@pytest.mark.parametrize(
    ("owner", "name"), list(PHRASES), ids=lambda x: getattr(x, "__name__", str(x))
)
def test_a_function_that_no_longer_calls_a_seam_is_named(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, rewritten())
    named = missing_seams()
    for text, _ in PHRASES[owner, name]:
        assert any(f"{text!r} in {owner.__name__}.{name}" in seam for seam in named)


def test_a_new_member_of_the_free_queue_is_one_that_mars_would_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FreeKVCacheBlockQueue, "steal_n", rewritten(), raising=False)
    with pytest.raises(UnsupportedEngineError, match=r"MARS's own FreeKVCacheBlockQueue\.steal_n"):
        check_seams()


def test_the_engine_does_not_start_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Scheduler, "_reserve_prefill_lookahead")
    with pytest.raises(UnsupportedEngineError, match=r"Scheduler\._reserve_prefill_lookahead"):
        MarsScheduler()


def test_every_override_is_checked_at_start() -> None:
    stock = [k for k in MarsScheduler.__mro__ if k.__module__.startswith("vllm.v1.core.sched.")]
    inherited = {name for kind in stock for name in vars(kind) if not name.startswith("__")}
    overridden = {
        n for n in vars(MarsScheduler) if n in inherited and callable(getattr(stock[0], n))
    }
    assert overridden == overridden & set(SEAMS[Scheduler])


def test_the_documentation_lists_every_seam() -> None:
    text = DOCS.read_text()
    missing = [f"{o.__name__}.{n}" for o, n in [*SEAM_LIST, *PHRASES] if f"`{n}" not in text]
    assert not missing


def config(
    *, chunked: bool = True, caching: bool = True, diffusion: bool = False, connector: Any = None
) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
        cache_config=SimpleNamespace(enable_prefix_caching=caching),
        model_config=SimpleNamespace(is_diffusion=diffusion),
        kv_transfer_config=connector,
    )


FULL = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
SLIDING = SlidingWindowSpec(
    block_size=16, num_kv_heads=1, head_size=8, dtype=torch.bfloat16, sliding_window=64
)
STATES = MambaSpec(block_size=16, shapes=((1, 8),), dtypes=(torch.bfloat16,))


def groups(*specs: Any) -> KVCacheConfig:
    return KVCacheConfig(
        num_blocks=10,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)],
    )


@pytest.mark.parametrize(
    ("engine", "kv", "caps", "holds", "reason"),
    [
        (config(), groups(FULL), True, True, ""),
        (config(), groups(SLIDING), True, True, ""),
        (config(chunked=False), groups(FULL), False, True, "chunked prefill is off"),
        (config(caching=False), groups(FULL), True, False, "prefix caching is off"),
        (config(), groups(FULL, SLIDING), False, False, "2 KV cache groups"),
        (config(), groups(STATES), False, False, "states instead of KV"),
        (config(), groups(), False, False, "0 KV cache groups"),
    ],
)
def test_what_an_engine_lets_a_policy_do_is_said_with_the_reason(
    engine: Any, kv: KVCacheConfig, caps: bool, holds: bool, reason: str
) -> None:
    can = abilities(engine, kv)
    assert (can.caps_prefill, can.holds_kv) == (caps, holds)
    assert [reason in said for said in can.reasons] == ([True] if reason else [])


def test_a_connector_is_refused_on_a_vllm_that_can_stand_still_with_it() -> None:
    with_connector = cast(Any, config(connector="OffloadingConnector"))
    with pytest.raises(UnsupportedEngineError, match=r"0\.30\.0.*upgrade vLLM to 0\.31"):
        check_config(with_connector, "0.30.0")
    check_config(with_connector, "0.31.0")
    check_config(cast(Any, config()), "0.30.0")


def test_a_diffusion_model_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedEngineError, match=r"diffusion.*without --scheduler-cls"):
        check_config(cast(Any, config(diffusion=True)))
