# SPDX-License-Identifier: Apache-2.0
"""What the small engine tells the control plane: the plug-in's own link, simple numbers."""

from __future__ import annotations

import time
import uuid
from typing import Any

from mars.config import EngineConfig
from mars.core import events as ev
from mars.telemetry.engine_link import EngineLink

NUM_BLOCKS = 1000
BLOCK = 16
BATCH = 10
"""Events of one burst that make a batch, as one engine step does."""


class EngineReports:
    """Turns and load over ZMQ, for one data-parallel rank.

    A turn's prompt counts a token for four bytes of its body; its context stays in use
    while the turn is open. There is no cache, and nothing is computed twice.
    """

    def __init__(self, events: str, control: str | None, rank: int = 0) -> None:
        config = EngineConfig(
            events_endpoint=events, control_endpoint=control, sample_interval_s=0.1
        )
        self._link = EngineLink(config, rank)
        self._open: dict[str, tuple[str, int]] = {}
        self._num_turns = 0
        self._num_tokens = 0
        self.commands: list[dict[str, Any]] = []
        self._sample()

    def submitted(self, session_id: str | None, num_bytes: int) -> str:
        """A turn came; returns its request id."""
        self.commands += self._link.commands()
        request_id = uuid.uuid4().hex
        num_prompt_tokens = max(1, num_bytes // 4)
        self._open[request_id] = (session_id or request_id, num_prompt_tokens)
        self._num_turns += 1
        self._link.emit(
            ev.TurnSubmitted(
                time=time.monotonic(),
                session_id=session_id or request_id,
                request_id=request_id,
                turn_index=0,
                num_prompt_tokens=num_prompt_tokens,
                projected_kv_blocks=-(-num_prompt_tokens // BLOCK),
            )
        )
        self._sample()
        return request_id

    def finished(self, request_id: str, num_output_tokens: int, reason: str) -> None:
        """The turn's reply is complete or given up."""
        session_id, num_prompt_tokens = self._open.pop(request_id)
        self._num_tokens += num_prompt_tokens + num_output_tokens
        self._link.emit(
            ev.TurnFinished(
                time=time.monotonic(),
                session_id=session_id,
                request_id=request_id,
                turn_index=0,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=num_output_tokens,
                num_cached_tokens=0,
                num_recomputed_tokens=0,
                num_preemptions=0,
                freed_blocks=-(-num_prompt_tokens // BLOCK),
                retained_blocks=0,
                finish_reason=reason,
            )
        )
        self._sample()

    def burst(self, count: int) -> None:
        """Publish so many events at once, in batches; a session ``burst`` cuts its chunks."""
        for number in range(count):
            self._link.emit(
                ev.ChunkShrunk(
                    time=time.monotonic(),
                    session_id="burst",
                    request_id=str(number),
                    wanted_tokens=2,
                    granted_tokens=1,
                )
            )
            if number % BATCH == BATCH - 1:
                self._link.flush()
        self._link.flush()

    def _sample(self) -> None:
        used = sum(-(-tokens // BLOCK) for _, tokens in self._open.values())
        self._link.emit(
            ev.EngineSampled(
                time=time.monotonic(),
                kv_blocks_total=NUM_BLOCKS,
                kv_blocks_free=max(0, NUM_BLOCKS - used),
                kv_blocks_retained=0,
                block_size=BLOCK,
                num_running=len(self._open),
                num_waiting=0,
                num_steps=self._num_turns,
                busy_s=0.0,
                computed_tokens=self._num_tokens,
                recomputed_tokens=0,
                prefix_queries_tokens=0,
                prefix_hits_tokens=0,
                preemptions=0,
                shrunk_chunks=0,
            )
        )
        self._link.flush()
