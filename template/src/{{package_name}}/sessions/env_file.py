"""Which files settings are read from, beside the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

NAME = ".env"


def checkout_of(file: Path) -> str | None:
    """The project whose `src/<package>/sessions/` this file is in; None where the package is installed."""
    source = file.resolve().parents[2]
    found = source.name == "src" and (source.parent / "pyproject.toml").is_file()
    return str(source.parent) if found else None


PROJECT = checkout_of(Path(__file__))


def env_files() -> list[str]:
    """The project's `.env` from anywhere inside the project, and the one of the current folder, which wins.

    Outside the project that of the current folder alone: so tests, which run in a folder of their own, see no other.
    """
    try:
        here = os.path.normcase(os.getcwd())
    except FileNotFoundError:  # the folder was removed
        return [NAME]
    if PROJECT is None or not here.startswith(os.path.normcase(PROJECT) + os.sep):
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
