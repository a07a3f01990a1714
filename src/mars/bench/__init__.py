# SPDX-License-Identifier: Apache-2.0
"""Replay of recorded sessions against a live server, and the measures both it and sim use."""
