"""What is measured."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any, Protocol

Items = list[Any]


class Side(Protocol):
    """One way to keep a conversation."""

    def get_items(self, limit: int) -> Awaitable[object]: ...
    def add_items(self, items: Items) -> Awaitable[object]: ...
    def pop_item(self) -> Awaitable[object]: ...


class Encoder:
    """Encodes items before the clock runs: each list of the benchmark once."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}

    def texts(self, items: Items) -> list[str]:
        return self._texts.get(id(items)) or self._texts.setdefault(id(items), [json.dumps(item) for item in items])
