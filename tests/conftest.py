# SPDX-License-Identifier: Apache-2.0
"""What every test shares: no settings leak in from the environment."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket

import pytest


def pytest_configure() -> None:
    """Started in the background, a shell makes us deaf to Ctrl-C, and our children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs vLLM where there is none; say so rather than fail at import."""
    if importlib.util.find_spec("vllm"):
        return
    skip = pytest.mark.skip(reason="vLLM is not installed: make install")
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's MARS_SECTION__NAME variables do not change what tests see."""
    for name in os.environ:
        if name.startswith("MARS_") and "__" in name:
            monkeypatch.delenv(name)


@pytest.fixture
def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
