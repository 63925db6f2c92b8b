"""What every store promises of leases, turns, pages and copies: one run at a time, and what is noted of it."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.records import TURNS_KEPT, Batch, Row, Turn, new_id

KEY = SessionRef("ada", "s")
LONG = 600.0
STRANGE = 'a "quoted" \\ text\nwith {lines}, 中文, 😀 and \u202e, 1e400, 0.10'


def batch(
    *contents: str, lease: UUID | None = None, turn: Turn | None = None, release: bool = False, title: str | None = None
) -> Batch:
    return Batch.of([Row(content) for content in contents], title)._replace(lease=lease, turn=turn, release=release)


async def take(store: SessionStore, ref: SessionRef = KEY, seconds: float = LONG) -> UUID:
    token = new_id()
    assert await store.lease(ref, token, seconds) is not None
    return token


# ── Leases ──────────────────────────────────────────────────────────────────


async def test_a_session_belongs_to_one_run_at_a_time(store: SessionStore) -> None:
    first, second = new_id(), new_id()
    assert await store.lease(KEY, first, LONG) is not None
    assert await store.lease(KEY, second, LONG) is None
    assert await store.lease(SessionRef("bob", "s"), second, LONG) is not None
    assert await store.release(KEY, first)
    assert await store.lease(KEY, second, LONG) is not None
    assert not await store.release(KEY, first)
    assert not await store.renew(KEY, first, LONG)
    assert await store.renew(KEY, second, LONG)


async def test_of_many_at_once_one_gets_it(store: SessionStore) -> None:
    tokens = [new_id() for _ in range(20)]
    taken = await asyncio.gather(*(store.lease(KEY, token, LONG) for token in tokens))
    assert sum(found is not None for found in taken) == 1


async def test_taking_it_again_is_harmless(store: SessionStore) -> None:
    token = new_id()
    for _ in range(3):
        taken = await store.lease(KEY, token, LONG)
        assert taken is not None
        assert taken.began
    assert await store.release(KEY, token)
    assert await store.find_session(KEY) is None


async def test_taking_it_reads_the_history(store: SessionStore) -> None:
    await store.append(KEY, batch("a", STRANGE, "c"))
    for limit, expected in ((None, ["a", STRANGE, "c"]), (2, [STRANGE, "c"]), (2**70, ["a", STRANGE, "c"]), (0, [])):
        token = new_id()
        taken = await store.lease(KEY, token, LONG, limit=limit)
        assert taken is not None
        assert (taken.rows, taken.last, taken.same, taken.began) == (expected, None, None, False)
        assert await store.release(KEY, token)


async def test_a_lease_that_expired_can_be_taken_and_is_lost_then(store: SessionStore) -> None:
    first = await take(store, seconds=0.05)
    await store.append(KEY, batch("a", lease=first))
    await asyncio.sleep(0.1)
    await store.append(KEY, batch("b", lease=first))  # nobody took it
    second = await take(store)
    with pytest.raises(LeaseLost):
        await store.append(KEY, batch("c", lease=first))
    await store.append(KEY, batch("d", lease=second))
    assert await store.tail(KEY, None) == ["a", "b", "d"]


async def test_what_a_dead_run_left_is_a_session_only_if_there_is_something_in_it(store: SessionStore) -> None:
    assert await store.lease(KEY, new_id(), 0.01) is not None
    await asyncio.sleep(0.05)
    taken = await store.lease(KEY, new_id(), 0.01)
    assert taken is not None
    assert taken.began
    await store.append(KEY, batch("a"))
    await asyncio.sleep(0.05)
    token = new_id()
    taken = await store.lease(KEY, token, LONG)
    assert taken is not None
    assert not taken.began
    assert not await store.fork(SessionRef("ada", "none"), KEY)
    assert await store.release(KEY, token)
    assert await store.tail(KEY, None) == ["a"]


async def test_a_renewed_lease_is_kept(store: SessionStore) -> None:
    token = await take(store, seconds=0.05)
    assert await store.renew(KEY, token, LONG)
    await asyncio.sleep(0.1)
    assert await store.lease(KEY, new_id(), LONG) is None


async def test_a_lease_can_be_revoked(store: SessionStore) -> None:
    token = await take(store)
    assert await store.release(KEY, None)
    assert not await store.renew(KEY, token, LONG)
    with pytest.raises(LeaseLost):
        await store.append(KEY, batch("a", lease=token))
    assert not await store.release(KEY, None)


async def test_who_has_no_lease_is_not_held_up(store: SessionStore) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", "b"))
    assert await store.pop(KEY) == "b"
    await store.append(KEY, batch("c", lease=token))
    assert await store.tail(KEY, None) == ["a", "c"]


async def test_a_session_that_stayed_empty_goes_again(store: SessionStore) -> None:
    token = await take(store)
    assert [info.session_id for info in (await store.list_sessions("ada")).sessions] == ["s"]
    assert await store.release(KEY, token)
    assert await store.find_session(KEY) is None
    assert (await store.list_sessions("ada")).sessions == []
    assert (await store.list_sessions()).sessions == []


@pytest.mark.parametrize("what", ["items", "title", "metadata", "turn", "before"])
async def test_a_session_with_something_in_it_stays(store: SessionStore, what: str) -> None:
    if what == "before":
        await store.append(KEY, batch())
    token = await take(store)
    match what:
        case "items":
            await store.append(KEY, batch("a"))
        case "title" | "metadata":
            given = {"title": "T"} if what == "title" else {"metadata": {"pinned": True}}
            assert await store.update_session(KEY, **given)
        case "turn":
            await store.append(KEY, batch(lease=token, turn=Turn("t", "done", "{}")))
    assert await store.release(KEY, token)
    assert await store.find_session(KEY) is not None


@pytest.mark.parametrize("how", ["delete_session", "delete_user"])
async def test_a_lease_does_not_bring_back_what_was_deleted(store: SessionStore, how: str) -> None:
    await store.append(KEY, batch("a"))
    token = await take(store)
    if how == "delete_session":
        assert await store.delete_session(KEY)
    else:
        assert await store.delete_user("ada") == 1
    with pytest.raises(LeaseLost):
        await store.append(KEY, batch("b", lease=token, turn=Turn("t", "done", "{}")))
    assert not await store.renew(KEY, token, LONG)
    assert not await store.release(KEY, token)
    assert await store.find_session(KEY) is None
    assert await store.turns(KEY) == []
    assert (await store.list_sessions("ada")).sessions == []


# ── Writing with a lease ────────────────────────────────────────────────────


async def test_a_leased_batch_is_stored_once_and_gives_the_lease_back(store: SessionStore) -> None:
    token = await take(store)
    sent = batch("a", "b", lease=token, turn=Turn("t", "done", "{}"), release=True, title="Title")
    await store.append(KEY, sent)
    await store.append(KEY, sent)  # its answer was lost
    second = await take(store)
    await store.append(KEY, sent)
    assert await store.tail(KEY, None) == ["a", "b"]
    found = await store.find_session(KEY)
    assert found is not None
    assert (found.title, found.item_count) == ("Title", 2)
    assert [info.session_id for info in (await store.list_sessions("ada")).sessions] == ["s"]
    assert await store.release(KEY, second)


async def test_a_batch_that_was_refused_can_be_sent_again(store: SessionStore) -> None:
    sent = batch("a", lease=new_id())
    with pytest.raises(LeaseLost):
        await store.append(KEY, sent)
    assert await store.find_session(KEY) is None
    await store.append(KEY, batch("x"))
    with pytest.raises(LeaseLost):
        await store.append(KEY, sent)
    token = await take(store)
    await store.append(KEY, sent._replace(lease=token))
    assert await store.tail(KEY, None) == ["x", "a"]


async def test_leased_runs_never_interleave(store: SessionStore) -> None:
    async def run(name: str) -> int:
        waited = 0
        token = new_id()
        while await store.lease(KEY, token, LONG) is None:
            waited += 1
            await asyncio.sleep(0.005)
        await store.append(KEY, batch(f"{name} question", lease=token))
        await store.append(KEY, batch(f"{name} answer", lease=token, release=True))
        return waited

    waits = await asyncio.gather(*(run(str(n)) for n in range(6)))
    rows = await store.tail(KEY, None)
    assert len(rows) == 12
    assert all(rows[at].split()[0] == rows[at + 1].split()[0] for at in range(0, 12, 2))
    assert any(waits)


# ── Turns ───────────────────────────────────────────────────────────────────


async def test_what_is_noted_of_a_turn_comes_back(store: SessionStore) -> None:
    token = await take(store)
    first = Turn("t 1", "done", STRANGE, "request/1")
    await store.append(KEY, batch("a", "b", lease=token, turn=first))
    await store.append(KEY, batch("c"))
    await store.append(KEY, batch("d", lease=token, turn=Turn("t 2", "paused", ""), release=True))
    newest, older = await store.turns(KEY, 10)
    assert older[:4] == first[:4]
    assert (newest.id, newest.status, newest.content, newest.request_id) == ("t 2", "paused", "", None)
    page = await store.page(KEY)
    assert (older.first, older.last) == (page.positions[0], page.positions[1])
    assert (newest.first, newest.last) == (page.positions[3], page.positions[3])
    assert await store.turns(KEY) == [newest]
    assert await store.turns(KEY, turn_id="t 1") == [older]
    assert await store.turns(KEY, turn_id="t 3") == []
    assert await store.turns(SessionRef("bob", "s")) == []
    taken = await store.lease(KEY, new_id(), LONG, request_id="request/1")
    assert taken is not None
    assert (taken.last, taken.same) == (newest, older)


async def test_the_newest_turn_of_a_request_is_found_and_a_request_may_change(store: SessionStore) -> None:
    token = await take(store)

    async def note(turn: Turn) -> None:
        await store.append(KEY, batch(lease=token, turn=turn))

    async def found(request_id: str) -> str | None:
        taken = await store.lease(KEY, token, LONG, request_id=request_id)
        assert taken is not None
        return taken.same and taken.same.id

    for turn_id, request_id in (("a", "r"), ("b", "r"), ("c", ""), ("d", None)):
        await note(Turn(turn_id, "done", "", request_id))
    assert [await found(request_id) for request_id in ("r", "", "1")] == ["b", "c", None]
    await note(Turn("b", "done", "", "other"))
    await note(Turn("c", "done", "", None))
    assert [await found(request_id) for request_id in ("r", "", "other")] == ["a", None, "b"]


async def test_a_turn_grows_when_it_goes_on(store: SessionStore) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", lease=token, turn=Turn("t", "paused", "state", "r")))
    await store.append(KEY, batch(lease=token, turn=Turn("t", "resumed", "state", "r")))
    await store.append(KEY, batch("b", "c", lease=token, turn=Turn("t", "done", "", "r")))
    (turn,) = await store.turns(KEY, 10)
    positions = (await store.page(KEY)).positions
    assert turn == Turn("t", "done", "", "r", positions[0], positions[2])


async def test_a_turn_without_items_has_no_positions(store: SessionStore) -> None:
    token = await take(store)
    await store.append(KEY, batch(lease=token, turn=Turn("t", "failed", "why")))
    assert await store.turns(KEY) == [Turn("t", "failed", "why")]


async def test_a_turn_is_not_noted_if_its_items_are_not_stored(store: SessionStore) -> None:
    await store.append(KEY, batch("a"))
    with pytest.raises(LeaseLost):
        await store.append(KEY, batch("b", lease=new_id(), turn=Turn("t", "done", "{}")))
    assert await store.turns(KEY) == []


async def test_of_many_who_claim_a_turn_one_does(store: SessionStore) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", lease=token, turn=Turn("t", "paused", STRANGE), release=True))
    (paused,) = await store.turns(KEY)
    claims = [paused._replace(status="resumed", content=uuid4().hex) for _ in range(12)]
    won = await asyncio.gather(*(store.change_turn(KEY, paused, claim) for claim in claims))
    assert sum(won) == 1
    winner = claims[won.index(True)]
    assert await store.turns(KEY) == [winner]
    assert await store.change_turn(KEY, paused, winner)  # its answer was lost
    assert not await store.change_turn(KEY, paused, claims[won.index(False)])


async def test_a_turn_is_changed_under_its_lease_alone(store: SessionStore) -> None:
    token = await take(store)
    turn = Turn("t", "paused", "{}")
    await store.append(KEY, batch("a", lease=token, turn=turn))
    (paused,) = await store.turns(KEY)
    assert not await store.change_turn(KEY, paused, paused._replace(status="x"), new_id())
    assert await store.change_turn(KEY, paused, paused._replace(status="y"), token)
    assert not await store.change_turn(KEY, paused._replace(id="other"), paused._replace(id="other", status="z"))
    assert [turn.status for turn in await store.turns(KEY)] == ["y"]


async def test_the_newest_turns_are_kept(store: SessionStore) -> None:
    token = await take(store)
    for number in range(TURNS_KEPT + 3):
        await store.append(KEY, batch(lease=token, turn=Turn(f"t{number}", "done", "", f"r{number}")))
    found = await store.turns(KEY, TURNS_KEPT)
    assert [turn.id for turn in found] == [f"t{number}" for number in range(TURNS_KEPT + 2, 2, -1)]
    assert await store.turns(KEY, turn_id="t2") == []
    for number, there in ((2, False), (3, True)):
        taken = await store.lease(KEY, token, LONG, request_id=f"r{number}")
        assert taken is not None
        assert (taken.same is not None) == there


@pytest.mark.parametrize("how", ["clear_session", "clear", "delete_session"])
async def test_turns_go_with_what_was_said(store: SessionStore, how: str) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", lease=token, turn=Turn("t", "paused", "state"), release=True))
    match how:
        case "clear_session":
            await store.session(KEY.session_id, user_id=KEY.user_id).clear_session()
        case "clear":
            await store.clear(KEY)
        case _:
            assert await store.delete_session(KEY)
            await store.append(KEY, batch("new"))
    assert await store.turns(KEY) == []


async def test_turns_outlive_a_compaction(store: SessionStore) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", "b", lease=token, turn=Turn("t", "done", "{}"), release=True))
    assert await store.replace_tail(KEY, None, batch("summary"))
    assert [turn.id for turn in await store.turns(KEY)] == ["t"]


# ── Pages ───────────────────────────────────────────────────────────────────


async def test_a_history_is_read_page_by_page_from_its_end(store: SessionStore) -> None:
    rows = [f"{number} {STRANGE}" for number in range(7)]
    await store.append(KEY, batch(*rows))
    seen, before, more = list[str](), None, True
    positions = list[int]()
    while more:
        page = await store.page(KEY, before, 3)
        seen[:0], positions[:0] = page.rows, page.positions
        before, more = page.positions[0], page.more
    assert seen == rows
    assert positions == sorted(set(positions))
    assert (await store.page(KEY, positions[0])) == ([], [], False)
    assert (await store.page(SessionRef("ada", "none"))) == ([], [], False)


async def test_a_position_stays_while_the_session_grows(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b", "c"))
    position = (await store.page(KEY)).positions[1]
    await store.append(KEY, batch("d"))
    assert (await store.page(KEY, position)).rows == ["a"]


# ── Copies ──────────────────────────────────────────────────────────────────

COPY = SessionRef("ada", "copy")


async def test_a_copy_has_everything_up_to_a_position(store: SessionStore) -> None:
    await store.append(KEY, batch("a", STRANGE, "c", title="Title"))
    assert await store.update_session(KEY, metadata={"pinned": [1, "é"]})
    position = (await store.page(KEY)).positions[2]
    assert await store.fork(KEY, COPY, position)
    assert await store.tail(COPY, None) == ["a", STRANGE]
    found = await store.find_session(COPY)
    assert found is not None
    assert (found.title, found.item_count, found.metadata) == ("Title", 2, {"pinned": [1, "é"]})
    assert [info.session_id for info in (await store.list_sessions("ada")).sessions] == ["copy", "s"]
    await store.append(COPY, batch("d"))
    assert await store.tail(COPY, None) == ["a", STRANGE, "d"]
    assert await store.tail(KEY, None) == ["a", STRANGE, "c"]
    assert await store.lease(COPY, new_id(), LONG) is not None  # nothing holds it


async def test_a_whole_session_is_copied(store: SessionStore) -> None:
    rows = [str(number) for number in range(1203)]
    await store.append(KEY, batch(*rows))
    assert await store.fork(KEY, COPY)
    assert await store.tail(COPY, None) == rows


async def test_a_copy_may_be_empty(store: SessionStore) -> None:
    await store.append(KEY, batch("a"))
    assert await store.fork(KEY, COPY, (await store.page(KEY)).positions[0])
    found = await store.find_session(COPY)
    assert found is not None
    assert found.item_count == 0


async def test_nothing_is_copied_over_a_session_or_from_none(store: SessionStore) -> None:
    await store.append(KEY, batch("a"))
    await store.append(COPY, batch("kept"))
    assert not await store.fork(KEY, COPY)
    assert not await store.fork(SessionRef("ada", "none"), SessionRef("ada", "new"))
    assert not await store.fork(SessionRef("bob", "s"), SessionRef("bob", "new"))
    assert await store.tail(COPY, None) == ["kept"]
    assert await store.find_session(SessionRef("ada", "new")) is None
    assert await store.lease(COPY, new_id(), LONG) is not None


async def test_of_two_copies_to_one_name_one_is_made(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b"))
    assert sorted(await asyncio.gather(*(store.fork(KEY, COPY) for _ in range(4)))) == [False, False, False, True]
    assert await store.tail(COPY, None) == ["a", "b"]


async def test_a_copy_for_another_user(store: SessionStore) -> None:
    await store.append(KEY, batch("a", title="T"))
    other = SessionRef("bob", "copy")
    assert await store.fork(KEY, other)
    assert await store.tail(other, None) == ["a"]
    assert [info.title for info in (await store.list_sessions("bob")).sessions] == ["T"]
