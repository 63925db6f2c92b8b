"""What was exported comes back exactly, once, or not at all."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from my_agent.sessions import SessionPage, SessionRef, SessionStore
from my_agent.sessions.codec import encode_item
from my_agent.sessions.errors import StoreUnavailable
from my_agent.sessions.records import Batch, Row
from my_agent.transfer.file import BrokenFile, check
from my_agent.transfer.sessions import export_sessions, import_sessions
from proof.support.command import invoke
from proof.support.helpers import anything

KEY = SessionRef("", "s")
LARGEST = 1_000_000


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def put(store: SessionStore, ref: SessionRef, *contents: str, title: str | None = None) -> None:
    await store.append(ref, Batch.of([Row(content) for content in contents], title))


async def exported(store: SessionStore, **which: Any) -> bytes:
    out = io.BytesIO()
    await export_sessions(store, out, **which)
    return out.getvalue()


async def imported(store: SessionStore, data: bytes, **how: Any) -> list[str]:
    """The outcome of each session, in the order of the import."""
    outcomes: list[str] = []
    file = io.BytesIO(data)
    await import_sessions(store, file, check(file, LARGEST), report=lambda _, outcome: outcomes.append(outcome), **how)
    return outcomes


async def everything(store: SessionStore) -> list[tuple[object, ...]]:
    """All sessions in the order of the listing, with all that a user can see of them."""
    infos = (await store.list_sessions(limit=500)).sessions
    return [
        (*key, info.title, info.metadata, info.item_count, await store.tail(key, None))
        for info in infos
        for key in [SessionRef(info.user_id, info.session_id)]
    ]


# ── There and back ──────────────────────────────────────────────────────────

DIFFICULT = [
    encode_item(anything(role="user", content="NUL \0, half a pair \ud83d, whole 😀, \u2028, \x1b[31m, [red]")),
    encode_item(anything(number=-0.0, big=2**70, exponent=1e16, tiny=5e-324, z=1, a=float("nan"))),
    '{"a" :  1,\r\n "b": "\\u00e9"}',
    "not json \u2028 at all\n\n",
    "",
    "[]",
]


async def test_everything_comes_back_exactly(store: SessionStore, other_store: SessionStore) -> None:
    await put(store, KEY, *DIFFICULT, title="Title [red] \x1b \u202e 😀")
    await store.update_session(KEY, metadata={"z": [1, 1.5, None, {"ä": "\u2028"}], "a": 2**70})
    await put(store, SessionRef("ada", "s"), "{}")
    await put(store, SessionRef("ada", "\u202e[/]\x1b[31m\n\t "), '{"role":"user","content":"x"}')
    await put(store, SessionRef("zoe", "emptied"), "{}", title="Kept")
    await store.clear(SessionRef("zoe", "emptied"))
    data = await exported(store)
    assert await imported(other_store, data) == ["imported"] * 4
    assert await everything(other_store) == await everything(store)
    # Only the times may differ.
    assert [line for line in (await exported(other_store)).splitlines() if b'"session"' not in line] == [
        line for line in data.splitlines() if b'"session"' not in line
    ]


async def test_importing_again_changes_nothing(store: SessionStore, other_store: SessionStore) -> None:
    await put(store, KEY, *DIFFICULT, title="T")
    await put(store, SessionRef("", "emptied"), "1")
    await store.clear(SessionRef("", "emptied"))
    data = await exported(store)
    await imported(other_store, data)
    before = (await other_store.list_sessions()).sessions
    assert await imported(other_store, data) == ["already there"] * 2
    assert (await other_store.list_sessions()).sessions == before


async def test_one_user_or_one_session_can_be_exported(store: SessionStore) -> None:
    for key in (SessionRef("ada", "a"), SessionRef("ada", "b"), SessionRef("", "a")):
        await put(store, key, "{}")

    async def names(**which: str) -> list[list[str]]:
        lines = (await exported(store, **which)).splitlines()
        headers = [json.loads(line)["session"] for line in lines if b'"session"' in line]
        return sorted([header["user_id"], header["session_id"]] for header in headers)

    assert await names(user_id="ada") == [["ada", "a"], ["ada", "b"]]
    assert await names(user_id="") == [["", "a"]]
    assert await names(session_id="a") == [["", "a"]]
    assert await names(user_id="ada", session_id="a") == [["ada", "a"]]


async def test_a_session_written_to_meanwhile_is_not_missed(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await put(store, SessionRef("", str(number)), "{}")
    pages = 0
    list_sessions = store.list_sessions

    async def two_at_a_time(user_id: str | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        nonlocal pages
        pages += 1
        page = await list_sessions(user_id, 2, cursor)
        if pages <= 2:
            # The oldest that is not listed yet moves to the front; a session is begun that need not be there.
            await put(store, SessionRef("", str(pages - 1)), "{}")
            await put(store, SessionRef("", f"begun later {pages}"), "{}")
        return page

    monkeypatch.setattr(store, "list_sessions", two_at_a_time)
    lines = (await exported(store)).splitlines()
    seen = [json.loads(line)["session"]["session_id"] for line in lines if b'"session"' in line]
    assert sorted(seen) == ["0", "1", "2", "3", "4", "5"]


# ── A history that is there already ─────────────────────────────────────────


async def test_a_shorter_history_is_completed(store: SessionStore, other_store: SessionStore) -> None:
    await put(store, KEY, "1", "2", "3")
    await put(other_store, KEY, "1")
    assert await imported(other_store, await exported(store)) == ["extended"]
    assert await other_store.tail(KEY, None) == ["1", "2", "3"]


async def test_a_longer_history_is_left_alone(store: SessionStore, other_store: SessionStore) -> None:
    await put(store, KEY, "1", "2")
    await put(other_store, KEY, "1", "2", "3")
    assert await imported(other_store, await exported(store)) == ["already there"]
    assert await other_store.tail(KEY, None) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("on_conflict", "outcome", "history"),
    [("refuse", "conflict", ["1", "x"]), ("skip", "skipped", ["1", "x"]), ("replace", "replaced", ["1", "2"])],
)
async def test_another_history_is_kept_unless_told_otherwise(
    store: SessionStore, other_store: SessionStore, on_conflict: str, outcome: str, history: list[str]
) -> None:
    await put(store, KEY, "1", "2", title="Theirs")
    await put(store, SessionRef("", "fine"), "1")
    await put(other_store, KEY, "1", "x", title="Ours")
    data = await exported(store)
    assert await imported(other_store, data, on_conflict=on_conflict, dry_run=True) == [outcome, "imported"]
    assert await other_store.find_session(SessionRef("", "fine")) is None
    assert await imported(other_store, data, on_conflict=on_conflict) == [outcome, "imported"]
    assert await other_store.tail(KEY, None) == history
    info = await other_store.find_session(KEY)
    assert info is not None
    assert info.title == ("Theirs" if on_conflict == "replace" else "Ours")


async def test_what_was_imported_and_cleared_can_be_imported_again(store: SessionStore) -> None:
    await put(store, KEY, "1", "2")
    data = await exported(store)
    await store.delete_session(KEY)
    for _ in range(3):
        await imported(store, data)
        assert await store.tail(KEY, None) == ["1", "2"]
        await store.clear(KEY)


async def test_a_title_and_metadata_that_a_crash_left_out_are_made_up_for(store: SessionStore) -> None:
    await put(store, KEY, "1", title="T")
    await store.update_session(KEY, metadata={"a": 1})
    data = await exported(store)
    await store.delete_session(KEY)
    await put(store, KEY, "1")
    assert await imported(store, data) == ["already there"]
    info = await store.find_session(KEY)
    assert info is not None
    assert (info.title, info.metadata) == ("T", {"a": 1})


async def test_a_lost_answer_does_not_double_the_import(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(store, KEY, "1", "2")
    data = await exported(store)
    await store.delete_session(KEY)
    append, calls = store.append, 0

    async def append_and_lose(ref: SessionRef, batch: Batch) -> None:
        nonlocal calls
        calls += 1
        await append(ref, batch)
        if calls == 1:
            raise StoreUnavailable("The answer was lost.", maybe_applied=True)

    monkeypatch.setattr(store, "append", append_and_lose)
    assert await imported(store, data) == ["imported"]
    assert (calls, await store.tail(KEY, None)) == (2, ["1", "2"])


async def test_two_imports_at_once_store_it_once(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(store, KEY, "1", "2")
    data = await exported(store)
    await store.delete_session(KEY)
    append, both_have_looked = store.append, asyncio.Barrier(2)

    async def append_together(ref: SessionRef, batch: Batch) -> None:
        await both_have_looked.wait()
        await append(ref, batch)

    monkeypatch.setattr(store, "append", append_together)
    await asyncio.gather(imported(store, data), imported(store, data))
    assert await store.tail(KEY, None) == ["1", "2"]


# ── Files that are no good ──────────────────────────────────────────────────


def header(items: object = 1, **changes: object) -> str:
    session: dict[str, object] = {
        "user_id": "",
        "session_id": "s",
        "title": None,
        "metadata": {},
        "created_at": "2026-01-01T00:00:00+00:00",
        "updated_at": "2026-01-01T00:00:00+00:00",
    }
    return json.dumps({"format": 1, "session": session | changes, "items": items})


ITEM = '{"content": "{}"}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([header(), ITEM, "{not json"], "Line 3 is not JSON"),
        ([header(), ITEM, header(session_id="b", items=2), ITEM], "ends after line 4: the session of line 3 has 2"),
        ([header(), ITEM, ITEM], "Line 3 should be the header of a session"),
        ([header(2), ITEM, header(session_id="b")], "Line 3 should be an item"),
        ([header(), '{"content": 1}'], "Line 2 should be an item, but is not: Expected `str`"),
        ([header(), ITEM[:-5]], "Line 2 is not JSON"),
        ([header(), ITEM, "", ITEM], "Line 3 is not JSON"),
        ([header(), ITEM, header(), ITEM], "Line 3 is the session of line 1 again"),
        (['{"format": 2}'], "Line 1 has format 2; this program reads format 1"),
        ([header(-1)], "Line 1 should be the header"),
        ([header("1"), ITEM], "Line 1 should be the header"),
        ([header(session_id="")], "Line 1 cannot be stored: session_id is empty"),
        ([header(user_id="x" * 1001)], "Line 1 cannot be stored: user_id is longer"),
        ([header(updated_at="yesterday")], "Line 1 should be the header"),
        ([header(updated_at="2026-01-01T00:00:00")], "Line 1 should be the header"),
        ([header(title="a\0b")], "Line 1 has a NUL in title"),
        ([header(title="\ud83d")], "Line 1 is not JSON"),
        ([header(metadata={"a": ["\0"]})], "Line 1 has a NUL"),
        ([header(metadata=[])], "Line 1 should be the header"),
        ([header(metadata={"a": float("nan")})], "Line 1 is not JSON"),
        ([header(), '{"content": "a\\u0000b"}'], "Line 2 is an item with a NUL"),
        ([header(), json.dumps({"content": "é" * (LARGEST // 2 + 1)})], "Line 2 is an item of 1,000,002 bytes"),
        (["[" * 100_000], "Line 1"),
        (["x" * 20_000_000], "Line 1 is longer than an item may be"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_a_broken_file_is_refused_with_its_line(store: SessionStore, lines: list[str], words: str) -> None:
    with pytest.raises(BrokenFile) as caught:
        await imported(store, "\n".join(lines).encode())
    assert words in str(caught.value)
    assert str(caught.value).endswith("Nothing was imported.")


async def test_a_binary_file_is_refused(store: SessionStore) -> None:
    with pytest.raises(BrokenFile, match="Line 1 is not JSON"):
        await imported(store, bytes(range(256)) * 100)


# ── The commands ────────────────────────────────────────────────────────────


async def test_a_file_appears_when_it_is_complete_and_for_its_owner_only(store: SessionStore, tmp_path: Path) -> None:
    await put(store, KEY, "1")
    (tmp_path / "out.jsonl").write_text("old")
    (tmp_path / "out.jsonl").chmod(0o644)
    done = await invoke("sessions", "export", "out.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "Exported 1 session with 1 item.\n")
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out.jsonl").read_bytes() == await exported(store)


async def test_an_export_that_fails_leaves_the_old_file(store: SessionStore, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    done = await invoke("sessions", "export", "out.jsonl", "--session", "nobody")
    assert (done.code, done.out) == (1, "")
    assert 'Error: There is no session "nobody"' in done.err
    assert (os.listdir(tmp_path), (tmp_path / "out.jsonl").read_text()) == (["out.jsonl"], "old")


async def test_stdout_can_be_piped_into_an_import(store: SessionStore) -> None:
    await put(store, KEY, *DIFFICULT, title="T")
    before = await everything(store)
    done = await invoke("sessions", "export")
    await store.delete_session(KEY)
    again = await invoke("sessions", "import", "-", stdin=done.out.encode())
    assert (again.code, again.err) == (0, "Done: 1 imported.\n")
    assert await everything(store) == before


async def test_a_pipe_is_a_file_too(store: SessionStore, tmp_path: Path) -> None:
    await put(store, KEY, "1")
    data = await exported(store)
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    try:
        done = await invoke("sessions", "import", f"/dev/fd/{read}")
    finally:
        os.close(read)
    assert (done.code, done.err) == (0, "Done: 1 already there.\n")


async def test_a_pipe_with_a_name_is_written_to_and_not_replaced(store: SessionStore, tmp_path: Path) -> None:
    # Never try this with a device like /dev/null: were it replaced, the whole machine would suffer.
    await put(store, KEY, "1")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)  # both, so that neither side waits for the other
    try:
        assert (await invoke("sessions", "export", "pipe")).code == 0
        assert (tmp_path / "pipe").is_fifo()
        assert os.read(reader, 65536) == await exported(store)
    finally:
        os.close(reader)


async def test_a_conflict_is_named_and_is_an_error(store: SessionStore, tmp_path: Path) -> None:
    await put(store, KEY, "1")
    await put(store, SessionRef("ada", "[red]\x1b"), "1")
    (tmp_path / "in").write_bytes(await exported(store))
    await store.replace_tail(SessionRef("ada", "[red]\x1b"), None, Batch.of([Row("x")]))
    done = await invoke("sessions", "import", "in")
    assert done.code == 1
    assert 'Conflict: "[red]\\u001b" of user "ada" is stored with another history.' in done.err
    assert "Done: 1 already there, 1 conflict." in done.err
    assert "Error: Sessions in conflict were left as they are. --on-conflict skip or replace decides." in done.err
    assert (await invoke("sessions", "import", "in", "--on-conflict", "skip")).code == 0


async def test_a_file_that_cannot_be_opened_is_named(store: SessionStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").write_text(f"{header()}\n{ITEM}\nrubbish")  # begins with a session that could be imported

    async def error(*arguments: str) -> str:
        done = await invoke("sessions", *arguments)
        assert (done.code, done.out) == (1, "")
        return done.err

    assert await error("import", "missing") == "Error: No such file or directory: missing\n"
    assert await error("import", "folder") == "Error: Is a directory: folder\n"
    assert (await error("import", "broken")).startswith("Error: Line 3 is not JSON")
    assert await error("export", "folder") == f"Error: Is a directory: {tmp_path}/folder\n"
    assert await error("export", "no/such/out") == "Error: No such file or directory: no/such/out\n"
    assert (await store.list_sessions()).sessions == []
