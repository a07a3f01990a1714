# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("vllm")

from mars.engine.vllm.compat import UnsupportedEngineError, check_seams, vllm_version

pytestmark = pytest.mark.vllm


def test_the_installed_vllm_has_every_seam() -> None:
    check_seams()
    assert vllm_version() != "unknown"


def test_an_old_vllm_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedEngineError, match=r"0\.29\.1 is older.*0\.30 to 0\.33.*upgrade"):
        check_seams("0.29.1")


def test_a_new_vllm_with_every_seam_runs() -> None:
    check_seams("0.99.0")


def test_a_missing_seam_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mars.engine.vllm.compat._METHODS", ("schedule", "gone_method"))
    with pytest.raises(UnsupportedEngineError, match=r"Scheduler\.gone_method.*mars gateway"):
        check_seams()
