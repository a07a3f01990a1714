# SPDX-License-Identifier: Apache-2.0
"""The tool runtime: real processes on scheduled slots, bounded, measured and reported."""
