# SPDX-License-Identifier: Apache-2.0
"""Doubles and starters that ship: for tests of MARS and of what is built on it."""
