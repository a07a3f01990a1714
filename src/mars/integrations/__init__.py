# SPDX-License-Identifier: Apache-2.0
"""What agents import to tell MARS more than their requests do. None needs any of it."""
