"""The two sides of the Supabase benchmark: ours, and the bare HTTP call as the floor. The SDK has no session for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import httpx

from my_agent.sessions import SupabaseSession, backend
from my_agent.settings import Settings
from side import Encoder, Goal, Items, Make

NAME = "Supabase (PostgREST 12 behind the development gateway)"
ADDRESS = "SUPABASE_URL"
MODES = {"fsync on": True}

# Any operation at most 1.2 times the bare call.
GOALS = {name: Goal((0, 0, 0), 1.2) for name in ("append 2", "read 20", "pop", "turn", "request")}


class Floor:
    """The same functions called with the same bodies by the HTTP client that ours uses; results are not decoded."""

    def __init__(self, client: httpx.AsyncClient, session_id: str) -> None:
        self._client = client
        self._key = {"p_user_id": "floor", "p_session_id": session_id}
        self._encoder = Encoder()

    async def add_items(self, items: Items) -> object:
        roles = ["user"] * len(items)
        contents = self._encoder.texts(items)
        batch = {"p_batch_id": str(uuid4()), "p_contents": contents, "p_roles": roles, "p_title": None}
        return await self._call("agent_session_append", batch)

    async def get_items(self, limit: int) -> object:
        return await self._call("agent_session_tail", {"p_limit": limit})

    async def pop_item(self) -> object:
        return await self._call("agent_session_pop", {})

    async def _call(self, function: str, arguments: Mapping[str, object]) -> object:
        answer = await self._client.post(f"/rest/v1/rpc/{function}", json={**self._key, **arguments})
        answer.raise_for_status()
        return answer.content


@asynccontextmanager
async def sides(environment: Mapping[str, str], clients: int) -> AsyncIterator[dict[str, list[Make]]]:
    """For each side, a conversation per client, over as many connections as there are clients."""
    await backend.upgrade(Settings().with_environment(environment))
    url, key = environment["SUPABASE_URL"], environment["SUPABASE_KEY"]
    os.environ.update(environment, SUPABASE_POOL_MAX=str(clients))
    # The gateway closes connections that are idle for longer.
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients, keepalive_expiry=2)
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    names = [f"bench-{clients}-{n}" for n in range(clients)]
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=30, trust_env=False) as client,
        SupabaseSession("keeps the connections open"),
    ):
        yield {
            "ours": [partial(SupabaseSession, name) for name in names],
            "floor": [partial(Floor, client, name) for name in names],
        }
