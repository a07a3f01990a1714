# SPDX-License-Identifier: Apache-2.0
"""Recorded and synthetic agent sessions: one schema, its files, and what can be done with them.

``schema`` is ``mars.trace/1``; ``io`` reads and writes it; ``content`` says which tokens a prompt
consists of; ``importers`` read the public forms; ``describe``, ``sample``, ``synth`` and
``convert`` are pure functions over sessions.
"""
