# SPDX-License-Identifier: Apache-2.0
"""How many tools run at once, where nobody says."""

import pytest

from mars.telemetry.host import usable_cores
from mars.tools.slots import default_slots


def test_slots_follow_the_cores() -> None:
    assert default_slots(8) == 8
    assert default_slots(8, cores_per_tool=0.5) == 16
    assert default_slots(0.5) == 1
    assert default_slots() == default_slots(usable_cores())
    with pytest.raises(ValueError, match="cores_per_tool"):
        default_slots(8, cores_per_tool=0)
