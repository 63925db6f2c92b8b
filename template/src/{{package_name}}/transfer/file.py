"""Exported files: opening them, `-` is stdin or stdout, and reading them.

All of a file is checked before any of it is used, one line in memory at a time.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from ..sessions.errors import SessionStoreError
from ..sessions.records import SessionInfo, SessionRef, encode_metadata

FORMAT = 1
_LONGEST_HEADER = 2**24
T = TypeVar("T")


class BrokenFile(SessionStoreError):
    """The file is not an export, or damaged. The message names the line; nothing was imported."""


class Place(NamedTuple):
    """Where a session stands in the file. Sorts by age."""

    updated_at: datetime
    ref: SessionRef
    line: int
    offset: int


class _Session(msgspec.Struct):
    user_id: str
    session_id: str
    title: str | None
    metadata: dict[str, Any]
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    updated_at: Annotated[datetime, msgspec.Meta(tz=True)]


class _Version(msgspec.Struct):
    format: int


class _Header(msgspec.Struct):
    session: _Session
    items: Annotated[int, msgspec.Meta(ge=0)]


class _Item(msgspec.Struct):
    content: str


def check(file: BinaryIO, max_item_bytes: int) -> list[Place]:
    """Read the whole file and say where its sessions are, those first that were written first.

    Raises:
        BrokenFile: At the first line that cannot be imported.
    """
    lines = _Lines(file, max_item_bytes)
    places: list[Place] = []
    first_seen: dict[SessionRef, int] = {}
    while True:
        offset = file.tell()
        header = lines.header()
        if header is None:
            return sorted(places)
        session = header.session
        ref = SessionRef(session.user_id, session.session_id)
        if ref in first_seen:
            raise lines.problem(f"is the session of line {first_seen[ref]} again")
        first_seen[ref] = lines.number
        places.append(Place(session.updated_at, ref, lines.number, offset))
        for _ in lines.contents(header):
            pass


def read_session(file: BinaryIO, place: Place, max_item_bytes: int) -> tuple[SessionInfo, list[str]]:
    """One session of a checked file, and the stored texts of its items.

    Raises:
        BrokenFile: The file has changed since it was checked.
    """
    file.seek(place.offset)
    lines = _Lines(file, max_item_bytes, number=place.line - 1)
    header = lines.header()
    if header is None or (header.session.user_id, header.session.session_id) != place.ref:
        raise BrokenFile("The file has changed while it was imported.")
    contents = list(lines.contents(header))
    session = header.session
    info = SessionInfo(
        *place.ref, session.title, len(contents), session.created_at, session.updated_at, session.metadata
    )
    return info, contents


class _Lines:
    def __init__(self, file: BinaryIO, max_item_bytes: int, number: int = 0) -> None:
        self.file, self.max_item_bytes, self.number = file, max_item_bytes, number
        # Escaped as \uXXXX, a character takes six times the space at most.
        self.longest = max(6 * max_item_bytes + 100, _LONGEST_HEADER)

    def header(self) -> _Header | None:
        """The next line as a header; None at the end of the file."""
        line = self._next()
        if line is None:
            return None
        version = self._decoded(line, _Version)
        if version.format != FORMAT:
            raise self.problem(f"has format {version.format}; this program reads format {FORMAT}")
        header = self._decoded(line, _Header)
        session = header.session
        try:
            SessionRef(session.user_id, session.session_id).check()
            encode_metadata(session.metadata, allow_nan=False)
        except ValueError as error:
            raise self.problem(f"cannot be stored: {error}") from None
        if any("\0" in text for text in _strings([session.title, session.metadata])):
            raise self.problem("has a NUL in title or metadata, which no database can store")
        return header

    def contents(self, header: _Header) -> Iterator[str]:
        """The items that belong to the header just read."""
        start = self.number
        for count in range(header.items):
            line = self._next()
            if line is None:
                raise BrokenFile(
                    f"The file ends after line {self.number}: the session of line {start} has "
                    f"{header.items} items, and only {count} are there. Nothing was imported."
                )
            item = self._decoded(line, _Item)
            if (size := len(item.content.encode())) > self.max_item_bytes:
                raise self.problem(
                    f"is an item of {size:,} bytes, more than {self.max_item_bytes:,}; raise SESSION_MAX_ITEM_BYTES"
                )
            if "\0" in item.content:
                raise self.problem("is an item with a NUL, which no database can store")
            yield item.content

    def problem(self, what: str) -> BrokenFile:
        return BrokenFile(f"Line {self.number} {what}. Nothing was imported.")

    def _next(self) -> bytes | None:
        line = self.file.readline(self.longest + 1)
        self.number += bool(line)
        if len(line) > self.longest:
            raise self.problem("is longer than an item may be; raise SESSION_MAX_ITEM_BYTES if this is the right file")
        return line or None

    def _decoded(self, line: bytes, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(line, type=shape)
        except msgspec.ValidationError as error:
            wanted = "an item" if shape is _Item else "the header of a session"
            raise self.problem(f"should be {wanted}, but is not: {error}") from None
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise self.problem("is not JSON; the file is not an export, or damaged") from None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@contextmanager
def writing(name: str) -> Iterator[BinaryIO]:
    """A file to write to. It appears under its name when it is complete, readable for its owner only.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(os.path.realpath(name))  # a link stays a link
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as out:
            yield out
    else:
        try:
            handle, unfinished = tempfile.mkstemp(prefix=".unfinished-", dir=path.parent)  # mode 0600
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        try:
            with os.fdopen(handle, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(unfinished, path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file to read, twice if need be: what cannot be rewound is copied to a temporary file first.

    Raises:
        OSError: It cannot be read.
    """
    if name == "-":
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            yield copy
        return
    with Path(name).open("rb") as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy
