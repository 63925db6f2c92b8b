"""Tracebacks without local variables: tools that report errors record these, and some hold passwords."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def forget_locals(error: BaseException) -> None:
    """Empty the frames that an error came through, and those of its causes; files and lines stay.

    Frames that still run keep theirs.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            todo += [each.__cause__, each.__context__]


def forgets_locals(function: Callable[P, T]) -> Callable[P, T]:
    """For a function that is given a secret or reads one: its errors show no local variable, and no argument."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_locals(error)
            raise

    return call
