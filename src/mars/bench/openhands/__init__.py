# SPDX-License-Identifier: Apache-2.0
"""The deployment experiment: real OpenHands conversations, real tools, an emulated GPU."""
