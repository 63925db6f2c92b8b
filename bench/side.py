"""What is measured."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

Items = list[Any]


class Side(Protocol):
    """One way to keep a conversation."""

    def get_items(self, limit: int) -> Awaitable[object]: ...
    def add_items(self, items: Items) -> Awaitable[object]: ...
    def pop_item(self) -> Awaitable[object]: ...
