"""The command with the slow agent of the tests, on an event loop that has no signal handlers, like those of Windows."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path
from typing import Any

import proof.support.slow_agent

_add = asyncio.SelectorEventLoop.add_signal_handler


def add_signal_handler(loop: Any, *arguments: Any) -> None:
    # The prompt does without them on Windows by itself.
    if sys._getframe(1).f_globals["__name__"].startswith("prompt_toolkit"):
        _add(loop, *arguments)
    else:
        raise NotImplementedError


asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler  # type: ignore[assignment,method-assign]
runpy.run_path(str(Path(proof.support.slow_agent.__file__)), run_name="__main__")
