"""Turns of a signed-in user: with the server's key, a run takes leases and notes its turns in the user's name."""

from __future__ import annotations

import pytest

from my_agent.sessions import SessionRef, SupabaseStore, WrongOwner
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.records import Batch, Row, Turn, new_id
from proof.supabase.fixtures import Environment, settings_for, token

ADA, BOB = "0b0e4c1e-0000-4000-8000-00000000ada0", "0b0e4c1e-0000-4000-8000-00000000b0b0"


@pytest.mark.usefixtures("store")
async def test_a_user_has_turns_of_their_own(project: Environment) -> None:
    async with (
        SupabaseStore(settings_for(project), token(project, ADA)) as ada,
        SupabaseStore(settings_for(project), token(project, BOB)) as bob,
    ):
        ref, lease = SessionRef(ADA, "s"), new_id()
        taken = await ada.lease(ref, lease, 60, limit=None)
        assert taken is not None
        assert taken.began
        assert await ada.renew(ref, lease, 60)
        batch = Batch.of([Row("a"), Row("b")])._replace(lease=lease, turn=Turn("t", "done", "x"), release=True)
        await ada.append(ref, batch)
        (turn,) = await ada.turns(ref)
        assert await ada.change_turn(ref, turn, turn._replace(status="seen"))
        assert (await ada.page(ref)).rows == ["a", "b"]
        assert await ada.fork(ref, SessionRef(ADA, "copy"))
        assert await ada.tail(SessionRef(ADA, "copy"), None) == ["a", "b"]

        assert await bob.turns(ref) == []
        assert (await bob.page(ref)).rows == []
        assert not await bob.fork(ref, SessionRef(ADA, "stolen"))
        assert not await bob.change_turn(ref, turn, turn._replace(status="stolen"))
        assert not await bob.release(ref, None)
        with pytest.raises(WrongOwner):
            await bob.lease(ref, new_id(), 60)
        with pytest.raises((WrongOwner, LeaseLost)):
            await bob.append(ref, Batch.of([Row("forged")])._replace(lease=lease))
        await ada.session("s").clear_session()
        assert await ada.turns(ref) == []
        assert await ada.release(ref, None) is False
        assert await ada.delete_session(ref)
