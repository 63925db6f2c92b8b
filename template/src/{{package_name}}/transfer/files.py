"""Files that commands read and write; `-` is stdin or stdout."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
