"""Settings of the stores: what there is for every backend, and where settings are read from."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeVar, overload

from dotenv.parser import parse_stream
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import SettingMissing
from .strings import LongStrings

NAME = ".env"


def checkout_of(file: Path) -> str | None:
    """The project whose `src/<package>/sessions/` this file is in; None where the package is installed."""
    source = file.resolve().parents[2]
    found = source.name == "src" and (source.parent / "pyproject.toml").is_file()
    return str(source.parent) if found else None


PROJECT = checkout_of(Path(__file__))
_everywhere = False


def read_project_file_everywhere() -> None:
    """For the project's own commands: its `.env` counts wherever they are started, as its `.dev` does."""
    global _everywhere
    _everywhere = True


def env_files() -> list[str]:
    """The project's `.env` from anywhere inside the project, and the one of the current folder, which wins.

    Outside the project that of the current folder alone: an app that uses a checkout as a library has its own.
    """
    try:
        here = os.path.normcase(os.getcwd())
    except FileNotFoundError:  # the folder was removed
        return [NAME]
    if PROJECT is None or not (_everywhere or here.startswith(os.path.normcase(PROJECT) + os.sep)):
        return [NAME]
    return [os.path.join(PROJECT, NAME), NAME]


class EnvFiles(Sequence[str]):
    """`env_files` as `env_file` of a settings class, looked up whenever settings are read."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return env_files()[index]

    def __len__(self) -> int:
        return len(env_files())


class StoreSettings(BaseSettings):
    """Settings of every backend, from the environment or `.env`."""

    model_config = SettingsConfigDict(
        env_file=EnvFiles(),
        env_file_encoding="utf-8-sig",  # a mark that editors on Windows begin a file with is not part of the first name
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
    )

    session_max_item_bytes: int = Field(default=16 * 2**20, gt=0)
    """Largest item in bytes of UTF-8. An image inlined as base64 counts in full."""
    session_long_strings: LongStrings = "refuse"
    """What happens to a string that is too long for any model (see `strings.py`). cut: its end is not stored."""
    session_retry_seconds: float = Field(default=10.0, ge=0)
    """How long a lost connection is retried before the error reaches the caller."""
    session_settle_seconds: float = Field(default=5.0, gt=0)
    """How long a call that was cancelled or timed out may take to find out, or undo, what the server made of it."""


# Reading takes more than a millisecond, ten times as long as reading a session; comparing takes a fiftieth of that.
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
        for file in _env_files(kind):
            _check_syntax(file)
        return kind()
    except UnicodeDecodeError:
        problem = ".env is not UTF-8 text. Save it as UTF-8."
    except OSError as error:
        problem = f"{error.filename or '.env'} cannot be read: {error.strerror}. Make it readable for this user."
    except ValidationError as error:
        told = ((each["loc"], each["msg"].removeprefix("Value error, ")) for each in error.errors())
        found = (f"{'.'.join(map(str, place)).upper()}: {message}" for place, message in told)
        problem = f"Check the environment and .env. {'; '.join(found)}"
    raise SettingMissing(problem)  # out here, so that it does not carry the values along as its context


def _check_syntax(file: Path) -> None:
    """The library would skip such a line, and with it perhaps the address of the server."""
    if file.is_file():
        with file.open(encoding="utf-8-sig") as stream:
            for binding in parse_stream(stream):
                if binding.error:
                    line = binding.original.line
                    raise SettingMissing(f"{file}, line {line} cannot be read. Write NAME=value, and close quotes.")


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
