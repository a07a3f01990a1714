# SPDX-License-Identifier: Apache-2.0
"""The policy core: standard library only, no clock, no I/O, no threads.

Everything that decides lives here and runs unchanged in the simulator, in vLLM and in
the gateway. ``now`` is always an argument, in monotonic seconds.
"""
