# SPDX-License-Identifier: Apache-2.0
"""Trace files: JSON Lines, plain, ``.gz`` or ``.xz``; ``public:NAME`` are those that ship."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from mars.traces.errors import TraceError
from mars.traces.schema import SCHEMA, TraceSession, decode_session, encode_session

PUBLIC_PREFIX = "public:"
_PUBLIC_SUFFIX = ".jsonl.xz"


def public_names() -> list[str]:
    """Names of the traces inside the package, for ``read_trace("public:NAME")``."""
    folder = files("mars.traces").joinpath("public")
    names = (entry.name for entry in folder.iterdir())
    return sorted(n.removesuffix(_PUBLIC_SUFFIX) for n in names if n.endswith(_PUBLIC_SUFFIX))


def open_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) of the lines that are not blank.

    Raises:
        TraceError: there is no such file or public trace, or its compression is broken.
    """
    name = str(path)
    number = 0
    try:
        with _open(name) as stream:
            for number, line in enumerate(stream, start=1):
                stripped = line.strip()
                if stripped:
                    yield number, stripped
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(
            f"the compressed file is damaged or cut short ({error}). Fetch or write it again.",
            source=name,
            line=number + 1,
        ) from None
    except OSError as error:
        raise TraceError(
            f"cannot be read: {error.strerror or error}. Give an existing .jsonl, .jsonl.gz or "
            f".jsonl.xz file, or one of {', '.join(PUBLIC_PREFIX + n for n in public_names())}.",
            source=name,
        ) from None


@contextmanager
def _open(name: str) -> Iterator[IO[bytes]]:
    with _found(name).open("rb") as raw:
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast("IO[bytes]", unpacked)
        elif name.endswith(".xz") or name.startswith(PUBLIC_PREFIX):
            with lzma.open(raw) as unpacked:
                yield unpacked
        else:
            yield raw


def _found(name: str) -> Path | Traversable:
    if not name.startswith(PUBLIC_PREFIX):
        return Path(name)
    wanted = name.removeprefix(PUBLIC_PREFIX)
    if wanted not in public_names():
        raise TraceError(
            f"there is no such public trace. Choose one of {', '.join(public_names())}.",
            source=name,
        )
    return files("mars.traces").joinpath("public", wanted + _PUBLIC_SUFFIX)


def read_trace(path: str | Path) -> Iterator[TraceSession]:
    """Read sessions one by one; the file is never wholly in memory.

    Raises:
        TraceError: names file, line and field of the first thing that is wrong; also when the
            file holds no session, or another form (which the message says how to convert).
    """
    name = str(path)
    seen: dict[str, int] = {}
    for number, line in open_lines(path):
        try:
            if not seen:
                _check_form(line)
            session = decode_session(line)
            _check_unique(session, number, seen)
        except TraceError as error:
            raise error.at(name, number) from None
        yield session
    if not seen:
        raise TraceError("holds no session. Give a trace with at least one line.", source=name)


def _check_unique(session: TraceSession, line: int, seen: dict[str, int]) -> None:
    first = seen.setdefault(session.session_id, line)
    if first != line:
        raise TraceError(
            f"{session.session_id!r} already stands on line {first}. Ids must be unique.",
            field="session_id",
        )


def _check_form(line: bytes) -> None:
    try:
        first: Any = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        if not line.startswith(b"{"):
            raise TraceError(
                f"this is not JSON Lines. Convert it first: mars trace convert (to {SCHEMA})."
            ) from None
        return
    schema = first.get("schema") if isinstance(first, dict) else None
    if schema != SCHEMA:
        raise TraceError(
            f"expected {SCHEMA!r}, got {schema!r}. Other forms are read by `mars trace convert`.",
            field="schema",
        )


def write_trace(path: str | Path, sessions: Iterable[TraceSession]) -> int:
    """Write sessions, compressed as the file name says, and return how many.

    Same sessions, same bytes: the compressed forms carry no time stamp.
    """
    num_sessions = 0
    with create(path) as stream:
        for session in sessions:
            stream.write(encode_session(session) + b"\n")
            num_sessions += 1
    return num_sessions


@contextmanager
def create(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, compressed as its name says, with no time stamp in it.

    The file appears under its name only when it is complete; after an error nothing is left.

    Raises:
        TraceError: the file cannot be written there.
    """
    target = Path(path)
    is_plain = not target.is_symlink() and (target.is_file() or not target.exists())
    # A pipe, a terminal or /dev/stdout is written to as it is.
    part = target.with_name(target.name + ".part") if is_plain else target
    try:
        raw = part.open("wb")
    except OSError as error:
        raise TraceError(
            f"cannot be written: {error.strerror or error}. Give a file in an existing folder.",
            source=str(path),
        ) from None
    try:
        with raw, _packed(raw, target.name) as stream:
            yield stream
        if is_plain:
            part.replace(target)
    finally:
        if is_plain:
            part.unlink(missing_ok=True)


@contextmanager
def _packed(raw: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".gz"):
        # No file name and no time in the header: the bytes depend on the sessions only.
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    elif name.endswith(".xz"):
        with lzma.open(raw, "wb", preset=9 | lzma.PRESET_EXTREME) as packed:
            yield packed
    else:
        yield raw
