# SPDX-License-Identifier: Apache-2.0
import tomllib
from pathlib import Path

import pytest

from mars import profiles
from mars.profiles import ProfileError, load_profile

ROOT = Path(profiles.__file__).parent


def test_alias_names_the_same_profile() -> None:
    short, full = (
        load_profile("h100-qwen3-coder-30b"),
        load_profile("h100-80gb-qwen3-coder-30b-a3b"),
    )
    assert short == full
    assert short.name == "h100-80gb-qwen3-coder-30b-a3b"
    nvl = load_profile("h100-nvl-qwen3-coder-30b")
    assert (nvl.gpu, nvl.model) == ("h100-nvl-94gb", "qwen3-coder-30b-a3b")


@pytest.mark.parametrize(
    ("model", "kv_bytes"),
    [
        ("qwen3-coder-30b-a3b", 98_304),
        ("gpt-oss-120b", 36_864),
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
    ],
)
def test_kv_bytes_follow_from_the_models_configuration(model: str, kv_bytes: int) -> None:
    assert load_profile(f"b200-{model}").kv_bytes_per_token == kv_bytes


def test_pool_is_what_weights_and_activations_leave() -> None:
    profile = load_profile("h200-qwen3-coder-30b")
    room = profile.accelerator.memory_bytes * 0.92 - profile.architecture.weight_bytes - 4 * 2**30
    assert 0 <= room - profile.kv_tokens * 98_304 < 16 * 98_304
    assert profile.kv_tokens % 16 == 0


def test_model_that_does_not_fit_says_where_it_does() -> None:
    with pytest.raises(ProfileError, match=r"does not fit on h200-141gb.*fits on: b200$"):
        load_profile("h200-llama-3.1-70b")


@pytest.mark.parametrize("name", ["h100", "h10-llama-3.1-8b", "h100-", "qwen3-coder-30b", ""])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ProfileError, match=r"unknown profile.*h100-80gb.*qwen3-coder-30b"):
        load_profile(name)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.toml")), ids=lambda path: path.stem)
def test_every_number_has_a_source(path: Path) -> None:
    content = tomllib.loads(path.read_text())
    sources = content["sources"]
    if path.parent.name == "gpus":
        numbers = {*content["accelerator"], "host_link", "max_num_seqs", "max_num_batched_tokens"}
        assert numbers == set(sources)
    else:
        derived = {"weight_bytes", "dense_bytes", "active_parameters", "shape", "kv"}
        assert derived <= set(sources)
    assert all(sources.values())


def test_mixture_weights_add_up() -> None:
    for model in ("qwen3-coder-30b-a3b", "gpt-oss-120b"):
        shape = load_profile(f"b200-{model}").architecture
        embedding = 2 * shape.hidden_size * shape.vocabulary_size
        parts = shape.dense_bytes + shape.expert_bytes + embedding
        assert parts == pytest.approx(shape.weight_bytes, rel=0.005)


def test_own_file_overrides_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'gpu = "h100"\nmodel = "llama-3.1-8b"\nkv_tokens = 4096\n'
        '[cost]\nbase_s = 0.01\n[sources]\nbase_s = "measured"\n'
    )
    profile = load_profile(path)
    stock = load_profile("h100-llama-3.1-8b")
    assert (profile.name, profile.kv_tokens, profile.cost.base_s) == ("mine", 4096, 0.01)
    assert profile.cost.per_token_s == stock.cost.per_token_s
    assert profile.sources["base_s"] == "measured"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu = 3", "gpu"),
        ('gpu = "h100"\nmodel = "llama-8b"\nspeed = 1', "speed"),
        ('gpu = "h100"\nmodel = "llama-8b"\n[cost]\nbase = 1.0', "base"),
        ('gpu = "h100"\nmodel = "llama-8b"\n[cost]\nbase_s = -1.0', "base_s"),
        ('gpu = "x100"\nmodel = "llama-8b"', "h100-80gb"),
        ("gpu = ", "mine.toml"),
    ],
)
def test_malformed_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        load_profile(path)


def test_missing_file_is_a_profile_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.toml"):
        load_profile(tmp_path / "none.toml")
