# SPDX-License-Identifier: Apache-2.0
"""The event log: JSONL while running, Parquet afterwards.

The file starts with a header line; every write holds whole lines only, so after a
``kill -9`` it is readable up to the last complete line, and reopening it cuts a torn
tail off before appending a new header. A file that was moved away (logrotate) or emptied
(copytruncate) is begun anew. A header line may stand anywhere: one marks each start of the
writer, and each checkpoint of a long log.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mars.core.events import Event
from mars.telemetry.codec import SCHEMA, CodecError, Record, decode_json, encode_json

_HEADER_PREFIX = b'{"schema":'
CHECKPOINT_BYTES = 16 * 2**20
"""Of log between two headers: a restart reads the last 64 MiB, so it finds one."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LogError(ValueError):
    """An event log is not readable; the message names file, line and fault."""


class JsonlSink:
    """Appends records to a file; safe to read at any time.

    Args:
        path: the log; its folder is made when missing.

    Raises:
        LogError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = -1
        self.num_headers = 0
        """Headers written: one more tells that readers may begin there."""
        self._num_bytes = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise LogError(
                f"event log {self.path} cannot be written ({error.strerror}); "
                "set telemetry.events_path to a writable file"
            ) from error

    def write(self, records: Iterable[Record]) -> None:
        """Append records, all lines in one system call."""
        lines = self.lines(records)
        if lines:
            self.write_lines(lines)

    @staticmethod
    def lines(records: Iterable[Record]) -> bytes:
        """The lines of some records, each with its end."""
        return b"".join(encode_json(record) + b"\n" for record in records)

    def write_lines(self, lines: bytes) -> None:
        """Append complete lines as made by :meth:`lines`.

        Raises:
            OSError: the disk is full or gone; nothing of ``lines`` is in the log then.
        """
        if self._is_rotated():
            self._begin()
        elif self._num_bytes > CHECKPOINT_BYTES:
            self._write_header()
        self._append(lines)

    def _write_header(self) -> None:
        self._append(msgspec.json.encode(header()) + b"\n")
        self._num_bytes = 0
        self.num_headers += 1

    def _begin(self) -> None:
        """Open the file, which may hold an earlier life, and append a header."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        _cut_torn_tail(fd)
        self._write_header()

    def _is_rotated(self) -> bool:
        """Whether the path names another file by now, or the file was emptied."""
        mine = os.fstat(self._fd)
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return True
        return (named.st_ino, named.st_dev) != (mine.st_ino, mine.st_dev) or not mine.st_size

    def _append(self, lines: bytes) -> None:
        view = memoryview(lines)
        start = os.fstat(self._fd).st_size
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, start)  # all or nothing: the writer counts it as lost
            raise
        self._num_bytes += len(lines)

    def close(self) -> None:
        """Flush to disk and close; harmless when closed already."""
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1


def read_records(
    path: str | os.PathLike[str], *, tail_bytes: int | None = None
) -> Iterator[Record]:
    """Records of a log in file order; a torn last line is left out.

    Args:
        path: the log.
        tail_bytes: begin so far before the end, at the next whole line (line numbers in
            errors then count from there).

    Raises:
        LogError: no header, another schema, or a malformed line before the last.
    """
    for entry in read_log(path, tail_bytes=tail_bytes):
        if isinstance(entry, Record):
            yield entry


def read_log(
    path: str | os.PathLike[str], *, tail_bytes: int | None = None
) -> Iterator[Record | dict[str, Any]]:
    """As :func:`read_records`, with the headers (maps) where they stand.

    Raises:
        LogError: as there.
    """
    with Path(path).open("rb") as file:
        is_whole = tail_bytes is None or os.fstat(file.fileno()).st_size <= tail_bytes
        if not is_whole:
            file.seek(-(tail_bytes or 0), os.SEEK_END)
            file.readline()
        for number, line in enumerate(file, start=1):
            if (is_whole and number == 1) or line.startswith(_HEADER_PREFIX):
                if line.endswith(b"\n"):
                    yield _check_header(line, path, number)
                continue
            if not line.endswith(b"\n"):
                return  # the writer was killed in the middle of it
            if line.isspace():
                continue
            try:
                yield decode_json(line)
            except CodecError as error:
                raise LogError(f"{path}, line {number}: {error}") from error


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """Events of a log in file order, as :func:`read_records` without the envelope."""
    for record in read_records(path):
        yield record.event


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The first header: ``schema``, ``wall_time`` (Unix s), ``monotonic_time``, ``host``."""
    with Path(path).open("rb") as file:
        return _check_header(file.readline(), path, 1)


def header() -> dict[str, Any]:
    """What a header says now; monotonic times of one ``boot_id`` can be compared."""
    try:
        boot_id = _BOOT_ID.read_text().strip()
    except OSError:
        boot_id = None
    return {
        "schema": SCHEMA,
        "wall_time": time.time(),
        "monotonic_time": time.monotonic(),
        "host": socket.gethostname(),
        "boot_id": boot_id,
    }


def _check_header(line: bytes, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
    try:
        header = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise LogError(f"{path}, line {number}: not a header: {error}") from error
    if header.get("schema") != SCHEMA:
        raise LogError(f"{path}, line {number}: schema {header.get('schema')!r}, not {SCHEMA!r}")
    return header


def _cut_torn_tail(fd: int) -> None:
    size = os.fstat(fd).st_size
    end = size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
