"""An import beside a running app: its rows stay together, and nothing that the app stores is lost."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.codec import encode_item
from my_agent.sessions.records import Batch, Row
from my_agent.transfer.file import check
from my_agent.transfer.sessions import OnConflict, import_sessions
from proof.support.helpers import texts, user

KEY = SessionRef("", "s")


def exported(*said: str) -> bytes:
    """A file with the one session."""
    header = (
        '{"format": 1, "session": {"user_id": "", "session_id": "s", "title": "T", "metadata": {}, "created_at": '
        f'"2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:00:00+00:00"}}, "items": {len(said)}}}'
    )
    rows = [json.dumps({"content": encode_item(user(text))}) for text in said]
    return "".join(f"{line}\n" for line in [header, *rows]).encode()


async def imported(store: SessionStore, data: bytes, on_conflict: OnConflict = "refuse") -> str:
    outcomes: list[str] = []
    file = io.BytesIO(data)
    await import_sessions(
        store, file, check(file, 10_000), on_conflict=on_conflict, report=lambda _, outcome: outcomes.append(outcome)
    )
    (outcome,) = outcomes
    return outcome


async def put(store: SessionStore, *said: str) -> None:
    await store.append(KEY, Batch.of([Row(encode_item(user(text)), "user") for text in said]))


class Beside:
    """An app that says something right after the import has looked, `times` times."""

    def __init__(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch, *, looks: str, times: int = 1) -> None:
        self.said: list[str] = []
        self.times = times
        look = getattr(store, looks)

        async def looked(*arguments: Any, **more: Any) -> Any:
            seen = await look(*arguments, **more)
            if len(self.said) < self.times:
                self.said.append(f"said by the app {len(self.said)}")
                await put(store, self.said[-1])
            return seen

        monkeypatch.setattr(store, looks, looked)


async def stored(store: SessionStore) -> list[str]:
    return texts(await store.session("s").get_items())


async def test_an_extension_never_lands_behind_what_the_app_said(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "a", "b")
    app = Beside(store, monkeypatch, looks="tail")
    assert await imported(store, exported("a", "b", "c", "d")) == "conflict"
    assert await stored(store) == ["a", "b", *app.said]


async def test_a_new_session_is_imported_as_a_whole_or_not_at_all(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Beside(store, monkeypatch, looks="find_session")
    assert await imported(store, exported("a", "b")) == "conflict"
    assert await stored(store) == app.said


async def test_an_emptied_session_is_imported_as_a_whole_or_not_at_all(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "x")
    await store.clear(KEY)
    app = Beside(store, monkeypatch, looks="tail")
    assert await imported(store, exported("a", "b")) == "conflict"
    assert await stored(store) == app.said


async def test_a_replacement_starts_over_with_what_the_app_said(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is replaced is what the outcome was judged by; no later word is lost unseen."""
    await put(store, "x")
    Beside(store, monkeypatch, looks="tail")
    assert await imported(store, exported("a", "b"), "replace") == "replaced"
    assert await stored(store) == ["a", "b"]


async def test_an_import_beside_an_app_that_never_stops_ends_with_a_conflict(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "x")
    app = Beside(store, monkeypatch, looks="tail", times=1000)
    assert await imported(store, exported("a", "b"), "replace") == "conflict"
    app.times = 0
    assert len(app.said) < 30
    assert await stored(store) == ["x", *app.said]


@pytest.mark.parametrize("before", [[], ["a"], ["a", "b"]])
async def test_an_import_beside_a_running_writer_never_interleaves(store: SessionStore, before: list[str]) -> None:
    file = [f"file {number}" for number in range(60)]
    begun = [*before, *file]
    for _ in range(5):
        await store.delete_session(KEY)
        if before:
            await put(store, *before)

        async def write() -> None:
            for number in range(8):
                await put(store, f"app {number}")

        outcome, _ = await asyncio.gather(imported(store, exported(*begun)), write())
        said = await stored(store)
        app = [f"app {number}" for number in range(8)]
        if outcome == "conflict":
            assert said == [*before, *app]
        else:
            assert said == [*begun, *app]


async def test_what_is_extended_keeps_its_rows(store: SessionStore) -> None:
    await put(store, "a", "b")
    assert await imported(store, exported("a", "b", "c")) == "extended"
    assert await imported(store, exported("a", "b", "c")) == "already there"
    assert await stored(store) == ["a", "b", "c"]


async def test_two_different_imports_of_one_new_session_leave_one_of_them(store: SessionStore) -> None:
    for _ in range(5):
        await store.delete_session(KEY)
        outcomes = await asyncio.gather(imported(store, exported("a", "b")), imported(store, exported("c", "d")))
        assert sorted(outcomes) == ["conflict", "imported"]
        assert await stored(store) in (["a", "b"], ["c", "d"])
