#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run vLLM's own scheduler tests with the MARS scheduler in the place of vLLM's.

    scripts/vllm_own_tests.py [--version 0.32.0] [--cache DIR] [--files test_scheduler.py ...]

vLLM's source release is fetched into the cache (its tests are not copied here, nothing is
built), and the same tests run four times: stock; MARS with vLLM's own order (`fcfs`); MARS
deciding everything, by client priority and in order of arrival. Reported is what passes
stock and fails under MARS. Most tests that fail stock need a model from the network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

FILES = (
    "test_scheduler.py",
    "test_async_scheduler.py",
    "test_deferred_block_free.py",
    "test_priority_preemption_bug.py",
    "test_swa_inflight_window_free.py",
    "test_worker_slot_overflow.py",
)
RUNS = {
    "stock": "",
    "mars: fcfs": "fcfs",
    "mars: client priority": "fcfs-priority",
    "mars: arrival order": "mars.core.policy.BasePolicy",
}
# What the tests ask the model hub for is the shape of two small public models.
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "word_embed_proj_dim": 768,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}
MODELS = {"facebook/opt-125m": OPT, "facebook/opt-350m": OPT}


def fetch(version: str, cache: Path) -> Path:
    """The tests of that release, unpacked; returns the folder that has ``tests``."""
    root = cache / f"vllm-{version}"
    if (root / "tests").is_dir():
        return root
    archive = cache / f"vllm-{version}.tar.gz"
    if not archive.exists():
        _download(version, cache)
    with tarfile.open(archive) as tar:
        wanted = ("tests/__init__", "tests/utils.py", "tests/v1/")
        for member in tar.getmembers():
            if member.name.partition("/")[2].startswith(wanted):
                tar.extract(member, cache, filter="data")
    return root


def _download(version: str, cache: Path) -> None:
    # pip asks a source release for its metadata; that much of a build needs these tools.
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tools = cache / "tools"
    need = ["setuptools>=77,<81", "setuptools-scm", "setuptools-rust", "packaging"]
    subprocess.run([*pip, "install", "--target", str(tools), *need], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tools),
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
    }
    get = ["download", "--no-deps", "--no-binary", "vllm", "--no-build-isolation"]
    command = [*pip, *get, "-d", str(cache), f"vllm=={version}"]
    subprocess.run(command, check=True, env=environment)


def write_models(home: Path) -> None:
    """A model hub folder with the configurations that the tests ask for."""
    for name, config in MODELS.items():
        base = home / "hub" / ("models--" + name.replace("/", "--"))
        snapshot = base / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (base / "refs").mkdir(exist_ok=True)
        (base / "refs" / "main").write_text("0" * 40)
        (snapshot / "config.json").write_text(json.dumps(config))


def run(root: Path, cache: Path, files: list[str], substitute: str) -> dict[str, str]:
    """Outcome of every test: passed, failed or skipped.

    Raises:
        SystemExit: pytest did not get as far as to run any.
    """
    report = cache / "report.xml"
    environment = {
        **os.environ,
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "1",
        "MARS_SUBSTITUTE": substitute,
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.getenv("PYTHONPATH", ""))),
    }
    quiet = ["-q", "-p", "no:cacheprovider", "--noconftest", "-W", "ignore", "--tb=short"]
    tests = [f"tests/v1/core/{name}" for name in files]
    plugin = ["-p", "vllm_substitute", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *quiet, *plugin, *tests]
    log = cache / f"log-{substitute or 'stock'}.txt"
    report.unlink(missing_ok=True)
    with log.open("wb") as out:
        subprocess.run(command, cwd=root, env=environment, stdout=out, stderr=out, check=False)
    if not report.exists():
        raise SystemExit(f"vllm_own_tests: no test was run; read {log}")
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        bad = kinds & {"failure", "error"}
        outcome = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
        outcomes[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = outcome
    return outcomes


def main() -> int:
    """Fetch, run and report; 1 if MARS fails what vLLM passes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", default="0.32.0")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mars-vllm")
    parser.add_argument("--files", nargs="+", default=list(FILES))
    options = parser.parse_args()
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    root = fetch(options.version, cache)
    write_models(cache / "hf")
    results = {name: run(root, cache, options.files, to) for name, to in RUNS.items()}
    print(f"{'':22}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for name, outcomes in results.items():
        num = [list(outcomes.values()).count(o) for o in ("passed", "failed", "skipped")]
        print(f"{name:22}{num[0]:8}{num[1]:8}{num[2]:9}")
    control = results["stock"]
    num_ours = 0
    for name in [name for name in results if name.startswith("mars")]:
        for test, outcome in results[name].items():
            if outcome == "failed" and control.get(test) == "passed":
                num_ours += 1
                print(f"{name}: {test}")
    return 1 if num_ours else 0


if __name__ == "__main__":
    sys.exit(main())
