"""Settings from the environment and `.env`, read again only after one of them changed.

Reading takes more than a millisecond, ten times as long as reading a session; comparing takes a fiftieth of that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from .store import SettingMissing

S = TypeVar("S", bound=BaseSettings)

CLOCK_NANOSECONDS = 1_000_000_000
"""A file that changed less than this ago may change again without a new time: file systems count in ticks."""


class Hidden:
    """Compared by value; its repr shows nothing of it."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: tuple[object, ...]) -> None:
        self._value = value
        try:
            self._hash = hash(value)
        except TypeError:  # settings of your own may hold a list
            self._hash = hash(tuple(map(type, value)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and self._hash == other._hash and self._value == other._value

    def __hash__(self) -> int:
        return self._hash


_known: dict[type[BaseSettings], tuple[Hidden, BaseSettings]] = {}


def from_environment(kind: type[S]) -> S:
    """Settings of this kind, the same object as before if neither the environment nor an env file changed.

    Raises:
        SettingMissing: As `read_settings` does.
    """
    files = [_state(name) for name in _env_files(kind)]
    now = Hidden((*os.environ.items(), *files))
    before, settings = _known.get(kind, (None, None))
    if before == now and isinstance(settings, kind):
        return settings
    settings = read_settings(kind)
    if not any(changed_just_now for _, changed_just_now in files):
        _known[kind] = (now, settings)
    return settings


def read_settings(kind: type[S]) -> S:
    """Read settings of this kind.

    Raises:
        SettingMissing: A variable has a value that cannot be used; the message names all of them, and no value.
    """
    try:
        return kind()
    except UnicodeDecodeError:
        problem = ".env is not UTF-8 text. Save it as UTF-8."
    except OSError as error:
        problem = f"{error.filename or '.env'} cannot be read: {error.strerror}. Make it readable for this user."
    except ValidationError as error:
        found = (f"{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors())
        problem = f"Check the environment and .env. {'; '.join(found)}"
    raise SettingMissing(problem)  # out here, so that it does not carry the values along as its context


def _env_files(kind: type[BaseSettings]) -> list[Path]:
    given = kind.model_config.get("env_file")
    names = [] if given is None else [given] if isinstance(given, (str, os.PathLike)) else given
    return [Path(name).expanduser() for name in names]


def _state(file: Path) -> tuple[Hashable, bool]:
    """What changes when a file does, and whether that was just now."""
    try:
        found = file.stat()
    except OSError:
        return None, False
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return state, abs(time.time_ns() - found.st_mtime_ns) < CLOCK_NANOSECONDS
