"""A note in a development server, to be found again."""

from __future__ import annotations

from collections.abc import Mapping

import redis

Environment = Mapping[str, str]


def remember(environment: Environment, note: str) -> None:
    """Keep a note in the server."""
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.set("note", note)


def recall(environment: Environment) -> str:
    """The note."""
    with redis.Redis.from_url(environment["REDIS_URL"], decode_responses=True) as client:
        return str(client.get("note"))
