"""Messages that get lost between a store and its server."""

from __future__ import annotations

from my_agent.sessions import SessionRef, SessionStore
from proof.support.helpers import texts, user
from proof.support.relay import Relay


async def check_writes_are_stored_once(relayed: SessionStore, relay: Relay, lost: str) -> None:
    """Write while each "request" or "answer", as `lost` says, is lost once on its way through the relay."""
    session = relayed.session("s")
    await session.add_items([user("before")])
    for number in range(5):
        if lost == "request":
            relay.requests_to_lose = 1
        else:
            relay.answers_to_lose = 1
        await session.add_items([user(f"{number}.a"), user(f"{number}.b")])
    assert relay.requests_to_lose == relay.answers_to_lose == 0
    assert texts(await session.get_items()) == ["before", *(f"{n}.{part}" for n in range(5) for part in "ab")]
    found = await relayed.find_session(SessionRef("", "s"))
    assert found is not None
    assert found.item_count == 11
