# SPDX-License-Identifier: Apache-2.0
"""No admission control: every session at once, as the published baselines run."""

from __future__ import annotations

from mars.core.policy import BaseAdmission, admission_policies


@admission_policies.register("none")
class NoAdmission(BaseAdmission):
    """Everybody is active at once. Ignores everything."""

    overtaking_s = 0.0
