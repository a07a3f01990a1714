# SPDX-License-Identifier: Apache-2.0
"""Real, unmodified agents against MARS: install them, run them, and say what worked."""
