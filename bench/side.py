"""What is measured, and what it should reach."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

Items = list[Any]


class Side(Protocol):
    """One way to keep a conversation."""

    def get_items(self, limit: int) -> Awaitable[object]: ...
    def add_items(self, items: Items) -> Awaitable[object]: ...
    def pop_item(self) -> Awaitable[object]: ...


Make = Callable[[], Side]
"""A new object for the same conversation, as a web request makes one."""


class Goal(NamedTuple):
    """What one operation should reach; 0: no goal."""

    sdk: tuple[float, float, float]
    """So many times faster than the SDK's session in p50, with 1, 16 and 64 clients."""
    floor: float
    """p50 at most so many times that of the bare driver, with 1 client."""


class Encoder:
    """Encodes items before the clock runs: each list of the benchmark once."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}

    def texts(self, items: Items) -> list[str]:
        return self._texts.get(id(items)) or self._texts.setdefault(id(items), [json.dumps(item) for item in items])
