# SPDX-License-Identifier: Apache-2.0
"""Closed-loop replay: every recorded session becomes a client over real HTTP.

A session sends a turn, waits for its last token, runs the turn's tools as real processes,
waits the recorded gap and sends the next turn. Nothing is sent earlier because the server
is fast, or skipped because it is slow. Prompts are token ids that share prefixes exactly as
recorded (:mod:`mars.traces.content`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from mars.bench.result import SessionRecord, TurnRecord
from mars.bench.stream import Reply, ReplyError, error_text, read_reply
from mars.bench.toolside import ToolSide
from mars.traces.content import prompt_segments, reply_segment, tokens
from mars.traces.schema import TraceSession

CONNECT_TIMEOUT_S = 10.0
MAX_TRIES = 5
"""Tries of one turn that is told to come back later: what the OpenAI client does at most."""
_RETRIED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class ServerLostError(ConnectionError):
    """The server does not accept connections any more: no session can go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """Where and how to replay.

    Attributes:
        url: base URL of the gateway (or of a bare engine).
        model: model name to ask for.
        time_scale: arrivals, tools and gaps take this many times longer (the engine's
            profile must be dilated alike); results are divided by it.
        turn_timeout_s: real seconds after which a turn counts as lost; None: never, since
            a held session may wait long.
        is_scripted: ask the emulated engine for the recorded reply (``vllm_xargs``).
    """

    url: str
    model: str
    time_scale: float = 1.0
    turn_timeout_s: float | None = None
    is_scripted: bool = True


@dataclass(slots=True)
class Progress:
    """Live counts, for whoever shows them."""

    num_sessions: int
    num_turns: int
    started_at: float = 0.0
    num_sessions_done: int = 0
    num_sessions_failed: int = 0
    num_turns_done: int = 0
    num_turns_open: int = 0

    def left_s(self, now: float) -> float | None:
        """Seconds still to go if turns go on at the present rate; None before the first."""
        if not self.num_turns_done:
            return None
        rate = self.num_turns_done / (now - self.started_at)
        return (self.num_turns - self.num_turns_done) / rate


class Replay:
    """Replays sessions; its records are complete at any moment, also when cut short.

    Args:
        sessions: what to replay; each needs turns.
        settings: where and how.
        tools: runs the tools and reports their events.
    """

    def __init__(
        self, sessions: Sequence[TraceSession], settings: ReplaySettings, tools: ToolSide
    ) -> None:
        self._sessions = sessions
        self.settings = settings
        self.tools = tools
        self._records = {
            s.session_id: SessionRecord(
                session_id=s.session_id, arrival_s=s.arrival_s, sct_s=None, tenant=s.tenant
            )
            for s in sessions
        }
        self.progress = Progress(len(sessions), sum(len(s.turns) for s in sessions))
        self.lags_s: list[float] = []
        """Real seconds by which each turn was sent late."""
        self.started_at = 0.0
        """Monotonic time of the trace's second 0."""
        self.ended_at = 0.0
        self.stop_reason: str | None = None

    def records(self) -> list[SessionRecord]:
        """One record per session, in the trace's order; unfinished ones say why."""
        for record in self._records.values():
            if record.sct_s is None and record.error is None:
                record.error = self.stop_reason or "not finished"
        return list(self._records.values())

    async def run(self) -> None:
        """Replay all sessions to their end.

        Errors of one session end that session only. A lost server ends the replay, which
        then returns with ``stop_reason`` set; cancellation sets it and is passed on.
        """
        self.started_at = self.progress.started_at = time.monotonic()
        try:
            await self._run_all()
        except* ServerLostError as lost:
            self.stop_reason = str(lost.exceptions[0])
        finally:
            self.ended_at = time.monotonic()
            if any(r.sct_s is None and r.error is None for r in self._records.values()):
                self.stop_reason = self.stop_reason or "interrupted"

    async def _run_all(self) -> None:
        timeout = aiohttp.ClientTimeout(
            total=self.settings.turn_timeout_s, sock_connect=CONNECT_TIMEOUT_S
        )
        # A fresh connection per turn: gaps may outlast any server's keep-alive, and a
        # request sent into a connection that is being closed cannot be repeated safely.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with (
            aiohttp.ClientSession(self.settings.url, timeout=timeout, connector=connector) as http,
            self.tools.posting(http),
            asyncio.TaskGroup() as group,
        ):
            for session in self._sessions:
                record = self._records[session.session_id]
                group.create_task(_Client(self, http, session, record).run())

    def modelled(self, real_s: float) -> float:
        """Modelled seconds of a real duration."""
        return real_s / self.settings.time_scale


@dataclass(slots=True)
class _Client:
    """One session's closed loop."""

    replay: Replay
    http: aiohttp.ClientSession
    session: TraceSession
    record: SessionRecord

    async def run(self) -> None:
        """Run the session to its end; what stops it is put on its record."""
        replay, record = self.replay, self.record
        due = replay.started_at + self.session.arrival_s * replay.settings.time_scale
        try:
            await self._turns(due)
        except ServerLostError:
            raise
        except (aiohttp.ClientError, ReplyError, OSError) as error:
            record.error = f"turn {record.num_turns}: {_cause(error)}"
            replay.progress.num_sessions_failed += 1
        else:
            record.sct_s = replay.modelled(time.monotonic() - due)
            replay.progress.num_sessions_done += 1
        replay.tools.end_session(self.session.session_id)
        await replay.tools.flush()  # its last tool ends before it does
        await self._end()

    async def _turns(self, due: float) -> None:
        scale, last = self.replay.settings.time_scale, len(self.session.turns) - 1
        for index, turn in enumerate(self.session.turns):
            body = _body(self.session, index, self.replay.settings)
            await _sleep_until(due)
            await self._turn(index, body, due)
            for number, tool in enumerate(turn.tools):
                call_id = f"{self.session.session_id}/{index}/{number}"
                self.record.num_tool_calls += 1
                await self.replay.tools.run(self.session.session_id, call_id, tool, scale)
            gap_s = turn.gap_s * scale if index < last else 0.0
            due = time.monotonic() + gap_s

    async def _turn(self, index: int, body: bytes, due: float) -> None:
        replay, planned = self.replay, self.session.turns[index]
        sent_at = time.monotonic()
        replay.lags_s.append(sent_at - due)
        seen = TurnRecord(
            turn_index=index,
            sent_s=replay.modelled(sent_at - replay.started_at),
            prompt_tokens=planned.prompt_tokens,
            output_tokens=0,
            lag_s=replay.modelled(sent_at - due),
        )
        self.record.turns.append(seen)
        replay.progress.num_turns_open += 1
        try:
            reply = await self._ask(body)
            self._count(seen, reply, sent_at, planned.output_tokens)
        except (aiohttp.ClientError, ReplyError, OSError) as error:
            seen.error = _cause(error)
            raise
        finally:
            replay.progress.num_turns_open -= 1

    async def _ask(self, body: bytes) -> Reply:
        """Send the turn; asked to come back later (a long hold), do so, as agents do."""
        headers = {"Content-Type": "application/json", "X-Session-ID": self.session.session_id}
        for _ in range(MAX_TRIES - 1):
            reply = await self._try(body, headers)
            if isinstance(reply, Reply):
                return reply
            await asyncio.sleep(reply)
        reply = await self._try(body, headers)
        if isinstance(reply, Reply):
            return reply
        raise ReplyError(f"told {MAX_TRIES} times to come back later")

    async def _try(self, body: bytes, headers: dict[str, str]) -> Reply | float:
        """The reply, or the seconds after which to ask again."""
        try:
            async with self.http.post("/v1/completions", data=body, headers=headers) as response:
                if response.status == HTTPStatus.OK:
                    return await read_reply(response.content.iter_any())
                text = error_text(await response.read())
                later = response.headers.get("Retry-After", "")
                if response.status in _RETRIED and later.isdigit():
                    return float(later)
                raise ReplyError(f"HTTP {response.status}: {text}")
        except aiohttp.ClientConnectorError as error:
            raise ServerLostError(
                f"{self.replay.settings.url} refuses connections ({error}); see the server's log"
            ) from error

    def _count(self, seen: TurnRecord, reply: Reply, sent_at: float, wanted: int) -> None:
        replay, record = self.replay, self.record
        got = reply.output_tokens if reply.output_tokens is not None else reply.num_chunks
        if got != wanted:
            raise ReplyError(f"{got} output tokens instead of {wanted} ({reply.finish_reason})")
        first, end = reply.first_token_at, reply.ended_at
        seen.output_tokens = got
        seen.prompt_tokens = reply.prompt_tokens or seen.prompt_tokens
        seen.cached_tokens = reply.cached_tokens
        seen.ttft_s = replay.modelled(first - sent_at) if first is not None else None
        seen.end_s = replay.modelled(end - replay.started_at) if end is not None else None
        record.num_turns += 1
        record.prompt_tokens += seen.prompt_tokens
        record.output_tokens += got
        replay.progress.num_turns_done += 1

    async def _end(self) -> None:
        """Tell the control plane; a bare engine answers 404, a lost one not at all."""
        try:
            path = f"/mars/v1/sessions/{self.session.session_id}/end"
            async with self.http.post(path) as response:
                await response.read()
        except (aiohttp.ClientError, OSError):
            return


def _body(session: TraceSession, index: int, settings: ReplaySettings) -> bytes:
    reply = reply_segment(session, index)
    body: dict[str, Any] = {
        "model": settings.model,
        "prompt": tokens(prompt_segments(session, index)),
        "max_tokens": session.turns[index].output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.is_scripted:
        body["vllm_xargs"] = {
            "mars_reply_tokens": reply.count,
            "mars_reply_seed": reply.content_id,
            "mars_reply_start": reply.start,
        }
    return msgspec.json.encode(body)


async def _sleep_until(due: float) -> None:
    wait_s = due - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)


def _cause(error: BaseException) -> str:
    text = str(error)
    return text if isinstance(error, ReplyError) else f"{type(error).__name__}: {text}"
