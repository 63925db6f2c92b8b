"""The command line, as a person and as a script see it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from my_agent.sessions import SessionStore
from my_agent.sessions.records import Batch, Row, SessionRef
from proof.support.backend import BACKEND
from proof.support.command import Terminal, environment, invoke, run
from proof.support.helpers import answer, anything, user

Damage = Callable[[int, str], Awaitable[None]]
NASTY = "[red]\x1b[31m\u202e[/]\n\t\x9b1m😀"
"""An id with what a terminal or Rich would act on."""


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


# ── list ────────────────────────────────────────────────────────────────────


async def test_sessions_are_listed_the_last_written_first(store: SessionStore) -> None:
    await store.session("first", user_id="ada").add_items([user("Hello there")])
    await store.session("second").add_items([user("Hi"), answer("Yes?")])
    lines = (await invoke("sessions", "list")).out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [["second", "", "2"], ["first", "ada", "1"]]
    assert lines[1].endswith("\tHello there")


async def test_a_user_sees_only_their_sessions(store: SessionStore) -> None:
    await store.session("first", user_id="ada").add_items([user("Hi")])
    await store.session("second").add_items([user("Hi")])
    assert (await invoke("sessions", "list", "--user", "ada")).out.startswith("first\tada\t")
    assert (await invoke("sessions", "list", "--user", "")).out.startswith("second\t\t")
    nobody = await invoke("sessions", "list", "--user", "zoe")
    assert (nobody.code, nobody.out, nobody.err) == (0, "", "There are no sessions.\n")


async def test_a_script_pages_through_json(store: SessionStore) -> None:
    for number in range(5):
        await store.session(f"{number}{NASTY}").add_items([user("Hi")])
    seen, cursor = [], list[str]()
    while True:
        page = json.loads((await invoke("sessions", "list", "--json", "--limit", "2", *cursor)).out)
        seen += [session["session_id"] for session in page["sessions"]]
        if page["next_cursor"] is None:
            break
        cursor = ["--cursor", page["next_cursor"]]
    assert seen == [f"{number}{NASTY}" for number in (4, 3, 2, 1, 0)]
    assert set(page["sessions"][0]) == {
        "user_id", "session_id", "title", "item_count", "created_at", "updated_at", "metadata"
    }  # fmt: skip


async def test_the_next_page_is_pointed_to(store: SessionStore) -> None:
    for number in range(3):
        await store.session(str(number)).add_items([user("Hi")])
    first = await invoke("sessions", "list", "--limit", "2")
    assert len(first.out.splitlines()) == 2
    second = await invoke("sessions", "list", *first.err.split(": ")[1].split())
    assert (second.out[:2], second.err) == ("0\t", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sessions", "list", "--cursor", "made up"],
        ["sessions", "list", "--limit", "0"],
        ["sessions", "list", "--limit", "501"],
        ["sessions", "show"],
        ["sessions", "show", "s", "--limit", "0"],
        ["sessions", "delete"],
        ["sessions", "delete", "--all"],
        ["sessions", "delete", "s", "--all", "--user", "ada"],
        ["sessions", "prune", "--yes"],
        ["sessions", "prune", "--yes", "--older-than", "30"],
        ["sessions", "prune", "--yes", "--older-than", "-1d"],
        ["sessions", "prune", "--yes", "--older-than", "99999999999999999999d"],
        ["sessions", "prune", "--yes", "--older-than", "9999999w"],
        ["sessions", "import", "file", "--on-conflict", "perhaps"],
        ["sessions", "liist"],
        ["nonsense"],
        ["chat", ""],
        ["chat", " "],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_exit_code_2(arguments: list[str], store: SessionStore) -> None:
    await store.session("s").add_items([user("Hi")])
    done = await invoke(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error" in done.err
    assert len((await store.list_sessions()).sessions) == 1


# ── show ────────────────────────────────────────────────────────────────────


async def test_a_session_is_shown_in_words(store: SessionStore, damage_row: Damage) -> None:
    call = anything(type="function_call", name="add", arguments='{"a":1}', call_id="1")
    result = anything(type="function_call_output", call_id="1", output="2")
    parts = [{"type": "input_text", "text": "Look"}, {"type": "input_image", "image_url": "x"}]
    image = anything(role="user", content=parts)
    thought = anything(type="reasoning", summary=[])
    odd = anything(type="compaction", data="…")
    await store.session("s").add_items([user("Hi\nyou"), call, result, thought, answer("2"), image, odd, user("gone")])
    await damage_row(1, "not json")
    done = await invoke("sessions", "show", "s")
    blocks = [block.split("\n", 1) for block in done.out.strip().split("\n\n")]
    assert blocks == [
        ["user", "Hi\nyou"],
        ["calls add", '{"a":1}'],
        ["result", "2"],
        ["reasoning", "(not shown by the model)"],
        ["assistant", "2"],
        ["user", "Look\n(input_image)"],
        ["compaction", '{"type": "compaction", "data": "…"}'],
        ["unreadable", "(8 characters)"],
    ]
    assert (await invoke("sessions", "show", "s", "--limit", "1")).out.startswith("unreadable\n")


async def test_json_is_what_is_stored(store: SessionStore) -> None:
    rows = ['{"z": 1,  "a":-0.0}', '{"a":\r\n1}', "not json", '{"big":1180591620717411303424}']
    await store.append(SessionRef("", "s"), Batch.of([Row(row) for row in rows]))
    done = await invoke("sessions", "show", "s", "--json")
    assert done.out.splitlines() == [rows[0], '{"a":  1}', rows[3]]
    assert "Unreadable rows left out: 1" in done.err


@pytest.mark.parametrize("command", [["show"], ["delete", "--yes"], ["export", "--session"]], ids=" ".join)
async def test_an_unknown_session_is_an_error(command: list[str]) -> None:
    done = await invoke("sessions", *command, "nobody")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: There is no session ")


@pytest.mark.parametrize("command", [["show"], ["delete", "--yes"], ["export", "--session"]], ids=" ".join)
@pytest.mark.parametrize(
    ("owners", "words"),
    [
        (["ada"], 'user "ada" has one: --user ada'),
        ([""], "user \"\" has one: --user ''"),
        (["eve smith", "bob"], 'users "bob" and "eve smith" have one: --user bob'),
        (["a b", "c", "d"], 'users "a b", "c" and "d" have one: --user \'a b\''),
        (["a", "b", "c", "d", "e"], 'users "a", "b", "c" and others have one: --user a'),
    ],
    ids=str,
)
async def test_a_session_of_somebody_else_is_pointed_to(
    store: SessionStore, command: list[str], owners: list[str], words: str
) -> None:
    await store.session("other").add_items([user("Hi")])
    for owner in owners:
        await store.session("work", user_id=owner).add_items([user("Hi")])
    asked = "zoe" if "" in owners else ""
    done = await invoke("sessions", *command, "work", *(["--user", asked] if asked else []))
    assert (done.code, done.out) == (1, "")
    assert done.err == f'Error: There is no session "work" of user "{asked}"; {words}\n'
    assert len((await store.list_sessions()).sessions) == len(owners) + 1


@pytest.mark.parametrize("name", ["", "x" * 1001, "\udcff"])
@pytest.mark.parametrize("command", [["show"], ["delete", "--yes"], ["export", "--session"]])
async def test_an_id_that_no_store_takes_is_an_error(command: list[str], name: str) -> None:
    done = await invoke("sessions", *command, name)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: session_id ")


# ── delete and prune ────────────────────────────────────────────────────────


async def names(store: SessionStore) -> list[str]:
    return sorted(info.session_id for info in (await store.list_sessions()).sessions)


async def test_a_session_of_one_user_is_deleted(store: SessionStore) -> None:
    for owner in ("", "ada"):
        await store.session("s", user_id=owner).add_items([user("Hi")])
    assert (await invoke("sessions", "delete", "s", "--user", "ada", "--yes")).code == 0
    (left,) = (await store.list_sessions()).sessions
    assert left.user_id == ""


async def test_all_sessions_of_a_user_are_deleted(store: SessionStore) -> None:
    for name, owner in (("a", "ada"), ("b", "ada"), ("c", ""), ("d", "zoe")):
        await store.session(name, user_id=owner).add_items([user("Hi")])
    done = await invoke("sessions", "delete", "--all", "--user", "ada", "--yes")
    assert done.err == "Deleted 2 sessions.\n"
    assert await names(store) == ["c", "d"]
    await invoke("sessions", "delete", "--all", "--user", "", "--yes")
    assert await names(store) == ["d"]


@pytest.mark.parametrize(
    "command", [["delete", "s"], ["delete", "--all", "--user", ""], ["prune", "--older-than", "0m"]], ids=" ".join
)
async def test_nothing_is_lost_without_a_yes(store: SessionStore, command: list[str]) -> None:
    await store.session("s").add_items([user("Hi")])
    done = await invoke("sessions", *command)
    assert (done.code, done.err) == (1, "Error: Not a terminal, so nobody can confirm this. Add --yes.\n")
    assert await names(store) == ["s"]


async def test_old_sessions_are_pruned(store: SessionStore) -> None:
    await store.session("s").add_items([user("Hi")])
    assert (await invoke("sessions", "prune", "--older-than", "1h", "--yes")).err == "Deleted 0 sessions.\n"
    assert (await invoke("sessions", "prune", "--older-than", "0m", "--yes")).err == "Deleted 1 session.\n"
    assert await names(store) == []


# ── At a terminal ───────────────────────────────────────────────────────────


async def test_strange_names_do_nothing_to_a_terminal(store: SessionStore) -> None:
    await store.session(NASTY, user_id=NASTY).add_items([user(f"{NASTY} said")])

    def look(*arguments: str, keys: str = "") -> str:
        with Terminal("sessions", *arguments) as terminal:
            if keys:
                terminal.wait_for("[y/N]")
                terminal.type(keys)
            terminal.end()
            return terminal.seen

    listed = await asyncio.to_thread(look, "list")
    assert "For scripts: --json." in listed
    shown = await asyncio.to_thread(look, "show", NASTY, "--user", NASTY)
    asked = await asyncio.to_thread(look, "delete", NASTY, "--user", NASTY, keys="n\n")
    for seen in (listed, shown, asked):
        assert "[red]" in seen
        assert "[/]" in seen
        assert not {"\u202e", "\x9b"} & set(seen)
        # The only escapes are our own: bold, dim and back.
        assert set(re.findall("\x1b.{3}", seen)) <= {"\x1b[1m", "\x1b[0m", "\x1b[2m"}


@pytest.mark.parametrize(("keys", "code", "left"), [("y\n", 0, 0), ("\n", 1, 1), ("\x03", 130, 1)])
async def test_a_person_is_asked(store: SessionStore, keys: str, code: int, left: int) -> None:
    await store.session("s").add_items([user("Hi")])

    def decide() -> int:
        with Terminal("sessions", "delete", "s") as terminal:
            terminal.wait_for('Delete session "s" for good? [y/N] ')
            terminal.type(keys)
            return terminal.end(again=keys)

    assert await asyncio.to_thread(decide) == code
    assert len(await names(store)) == left


# ── As a process ────────────────────────────────────────────────────────────


async def test_help_needs_no_server_and_names_every_command(
    server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in server_environment:
        monkeypatch.setenv(name, "rubbish")
    done = await run("--help")
    assert done.code == 0
    commands = ("chat", "doctor", "sessions", *(["db"] if BACKEND != "redis" else []))
    assert all(command in done.out for command in commands)


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'agents', 'asyncpg', 'pydantic', 'redis', 'supabase'}"
    program = f"import sys, my_agent.cli.main; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout == "set()\n", done.stderr


async def test_a_listing_does_without_the_sdk(store: SessionStore) -> None:
    await store.session("s").add_items([user("Hi")])
    program = (
        "import sys; from my_agent.cli.main import app; app(standalone_mode=False); print('agents' in sys.modules)"
    )
    for command in (["sessions", "list"], ["sessions", "list", "--help"]):
        done = await run(*command, program=(sys.executable, "-c", program))
        assert done.out.splitlines()[-1] == "False", done.err


@pytest.mark.parametrize("command", ["sessions export", "sessions export --session short", "doctor"])
async def test_a_reader_that_leaves_early_is_no_crash(store: SessionStore, command: str) -> None:
    await store.session("long").add_items([user("x" * 1000) for _ in range(500)])
    await store.session("short").add_items([user("Hi")])
    read, write = os.pipe()
    os.close(read)
    try:
        done = await run(*command.split(), stdout=write)
    finally:
        os.close(write)
    assert (done.code, done.err) == (1, "Error: The reader of the output is gone; stopped.\n")


async def test_a_terminal_that_lacks_characters_gets_them_spelt_out(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.session("s").add_items([user("Ada é 😀")])
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = await run("sessions", "show", "s")
    assert (done.code, done.out) == (0, "user\nAda \\xe9 \\U0001f600\n\n")


async def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "planted soon")
    done = await invoke("sessions", "list")
    assert (done.code, done.out) == (1, "")
    assert "Error: Check the environment and .env. SESSION_RETRY_SECONDS: " in done.err
    assert "planted" not in done.err
