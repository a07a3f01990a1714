# SPDX-License-Identifier: Apache-2.0
"""The `mars` command: one file for each verb."""
