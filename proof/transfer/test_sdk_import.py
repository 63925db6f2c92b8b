"""What the SDK's own SQLiteSession has stored comes over exactly, once, and its file is only read."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from agents import SQLiteSession
from agents.items import TResponseInputItem

from my_agent.sessions import SessionRef, SessionStore
from proof.support.command import Done, Terminal, invoke
from proof.support.helpers import answer, anything, texts, user

DIFFICULT = [
    user("NUL \0, half a pair \ud83d, whole 😀, \u2028, \x1b[31m"),
    anything(number=-0.0, big=2**70, exponent=1e16, z=1, a=float("nan"), t="é"),
    answer("Hello"),
]


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def put(session_id: str, *items: TResponseInputItem, table: str = "agent_messages") -> None:
    """Store items as an app does that uses the SDK's session."""
    with closing(SQLiteSession(session_id, "old.db", messages_table=table)) as session:
        await session.add_items(list(items))


async def import_old(*options: str) -> Done:
    return await invoke("sessions", "import", "--from", "sqlite:///old.db", *options)


def raw(session_id: str) -> list[str]:
    with closing(sqlite3.connect("old.db")) as database:
        statement = "SELECT message_data FROM agent_messages WHERE session_id = ? ORDER BY id"
        return [text for (text,) in database.execute(statement, [session_id])]


def damage(row: int, text: object) -> None:
    with closing(sqlite3.connect("old.db")) as database, database:
        database.execute("UPDATE agent_messages SET message_data = ? WHERE id = ?", (text, row))


async def test_every_text_comes_over_exactly_and_in_order(store: SessionStore) -> None:
    await put("a", *DIFFICULT)
    await put("b", user("first of b"))
    await put("a", user("last of a"))
    damage(5, '{"role" :  "user",\r\n "content": "\\u00e9 é 1.50"}')  # not how this version of the SDK writes it
    done = await import_old("--user", "ada")
    assert (done.code, done.out, done.err) == (0, "", "Done: 2 imported (5 items).\n")
    for session_id in ("a", "b"):
        assert await store.tail(SessionRef("ada", session_id), None) == raw(session_id)
    # The one that was written to last is the newest here, too.
    infos = (await store.list_sessions()).sessions
    assert [(info.session_id, info.user_id, info.item_count) for info in infos] == [("a", "ada", 4), ("b", "ada", 1)]
    assert infos[1].title == "first of b"


async def test_an_agent_goes_on_where_the_sdk_stopped(store: SessionStore) -> None:
    await put("s", user("before"))
    await import_old()
    session = store.session("s")
    await session.add_items([user("after")])
    assert texts(await session.get_items()) == ["before", "after"]
    assert (await import_old()).err == "Done: 1 already there (1 item).\n"
    assert texts(await session.get_items()) == ["before", "after"]


async def test_importing_again_brings_only_what_is_new(store: SessionStore) -> None:
    await put("a", user("1"))
    await put("b", user("1"))
    await import_old()
    await put("b", user("2"))
    await put("c", user("1"))
    assert (await import_old()).err == "Done: 1 already there (1 item), 1 extended (2 items), 1 imported (1 item).\n"
    assert texts(await store.session("b").get_items()) == ["1", "2"]


async def test_a_dry_run_only_says_what_would_happen(store: SessionStore) -> None:
    await put("s", user("1"), user("2"))
    assert (await import_old("--dry-run")).err == "It would be: 1 imported (2 items).\n"
    assert (await store.list_sessions()).sessions == []


async def test_a_history_that_went_on_differently_is_kept(store: SessionStore) -> None:
    await put("s", user("theirs"))
    await store.session("s").add_items([user("ours")])
    done = await import_old()
    assert done.code == 1
    assert 'Conflict: "s" is stored with another history.' in done.err
    assert texts(await store.session("s").get_items()) == ["ours"]
    assert (await import_old("--on-conflict", "replace")).code == 0
    assert texts(await store.session("s").get_items()) == ["theirs"]


async def test_unreadable_rows_are_named_and_counted_and_all_others_come(store: SessionStore) -> None:
    await put("s", *(user(str(number)) for number in range(6)))
    for row, text in ((1, "{not json"), (2, b'{"role": "user", "content": "\xff"}'), (4, "[1]"), (6, "")):
        damage(row, text)
    await put("all of it", user("x"))
    damage(7, "x")
    done = await import_old()
    assert done.code == 1
    assert done.err.splitlines() == [
        'Left out: row 1 of session "s" (not JSON).',
        'Left out: row 2 of session "s" (not UTF-8).',
        'Left out: row 4 of session "s" (JSON, but no object).',
        'Left out: row 6 of session "s" (not JSON).',
        'Left out: row 7 of session "all of it" (not JSON).',
        "Done: 1 imported (2 items).",
        "Error: Skipped 5 rows or sessions (listed above); the source is unchanged.",
    ]
    assert texts(await store.session("s").get_items()) == ["2", "4"]
    assert "Done: 1 already there (2 items)." in (await import_old()).err


async def test_a_session_that_no_store_could_keep_is_named(store: SessionStore) -> None:
    await put("", user("1"))
    await put("x" * 1001, user("1"))
    await put("fine", user("1"))
    done = await import_old()
    assert done.code == 1
    assert 'Left out: session "" (session_id is empty.' in done.err
    assert "(session_id is longer than 1000 bytes." in done.err
    assert "Done: 1 imported (1 item)." in done.err


async def test_an_item_that_is_too_large_stops_the_import_before_its_session(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put("a", user("1"))
    await put("b", user("1"), user("x" * 1000))
    monkeypatch.setenv("SESSION_MAX_ITEM_BYTES", "500")
    done = await import_old()
    assert done.code == 1
    assert "Stopped after 1 of 2 sessions. Run the command again to continue." in done.err
    assert "Error: Row 3 of 'b' has 1,0" in done.err
    assert await store.find_session(SessionRef("", "b")) is None


async def test_the_source_is_only_read(store: SessionStore, tmp_path: Path) -> None:
    await put("s", *DIFFICULT)
    before = (tmp_path / "old.db").read_bytes()
    (tmp_path / "old.db").chmod(0o400)
    assert (await import_old()).code == 0
    assert (tmp_path / "old.db").read_bytes() == before


async def test_an_app_that_still_writes_is_not_disturbed(store: SessionStore) -> None:
    with closing(SQLiteSession("s", "old.db")) as session:
        await session.add_items([user("not yet in the main file, but in the log beside it")])
        done, _ = await asyncio.gather(import_old(), session.add_items([user(str(n)) for n in range(20)]))
        assert "1 imported" in done.err
        assert len(await session.get_items()) == 21
    assert (await import_old()).code == 0
    assert await store.tail(SessionRef("", "s"), None) == raw("s")


async def test_other_addresses_of_the_same_file(store: SessionStore, tmp_path: Path) -> None:
    await put("s", user("1"), table="Other_messages")
    for address in ("sqlite:///old.db", f"sqlite:///{tmp_path}/old.db", "sqlite+aiosqlite:///old.db"):
        done = await invoke("sessions", "import", "--from", f"{address}?messages_table=Other_messages")
        assert done.code == 0, done.err
    await put("s", user("1"))
    assert (await invoke("sessions", "import", "--from", "old.db")).err == "Done: 1 already there (1 item).\n"


@pytest.fixture
def no_database() -> None:
    Path("text.db").write_text("This is a text, and no database at all. " * 100)
    with closing(sqlite3.connect("empty.db")) as database:
        database.execute("CREATE TABLE other (id int)")
    with closing(sqlite3.connect("branches.db")) as database, database:
        database.execute("CREATE TABLE agent_messages (id, session_id, message_data)")
        database.execute("CREATE TABLE message_structure (branch_id)")
        database.execute("INSERT INTO message_structure VALUES ('other')")


@pytest.mark.usefixtures("no_database")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("missing.db", "--from: file not found: missing.db."),
        ("sqlite://", "--from: file not found: ."),
        ("text.db", "--from: text.db cannot be read: file is not a database."),
        ("empty.db", "--from: empty.db has no table agent_messages of the SDK."),
        ("branches.db", "--from: branches.db holds branches (AdvancedSQLiteSession)"),
        ("sqlite:///empty.db?table=x", "--from: table is not a parameter of a SQLite file"),
        ("mysql://user:hidden@host/db", "--from: this project reads sqlite:///file.db"),
    ],
)
async def test_an_address_that_cannot_be_read_says_so(store: SessionStore, address: str, words: str) -> None:
    done = await invoke("sessions", "import", "--from", address)
    assert done.code == 1
    assert done.err.startswith(f"Error: {words}"), done.err
    assert "hidden" not in done.err


@pytest.mark.parametrize("arguments", [[], ["file", "--from", "old.db"], ["file", "--user", "ada"]])
async def test_a_file_or_an_address_and_nothing_between(arguments: list[str]) -> None:
    assert (await invoke("sessions", "import", *arguments)).code == 2


async def test_a_progress_bar_shows_how_far_it_is(store: SessionStore) -> None:
    await put("a", user("1"))

    def watch() -> str:
        with Terminal("sessions", "import", "--from", "old.db") as terminal:
            terminal.wait_for("Importing")
            assert terminal.end() == 0
            return terminal.seen

    assert "Done: 1 imported (1 item)." in await asyncio.to_thread(watch)
