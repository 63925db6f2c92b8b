"""Passwords, keys and what people say stay out of logs, errors and their tracebacks, and out of every `repr`.

That no command prints a secret is checked whenever a test runs one: see `_checked` in command.py.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from my_agent.sessions import BackendSettings, BackendStore, SessionStore, SessionStoreError
from my_agent.sessions.records import Batch, Content, Row
from my_agent.settings import Settings, load_settings
from proof.support.command import invoke
from proof.support.helpers import answer, anything, user

SAID = "planted: what a person said"
DAMAGED = '{"planted": "half a row'


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def traceback_of(call: Awaitable[object]) -> str:
    """What an application would log of an error, with all causes."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is not the question
        await call
    return "".join(traceback.format_exception(caught.value)) + repr(caught.value)


def with_planted_secrets(settings: BackendSettings, *, port: int | None = None) -> BackendSettings:
    """The same server, or none at `port`; password and key are wrong, and must not be seen."""
    found = {}
    for name in type(settings).model_fields:
        if isinstance(value := getattr(settings, name), SecretStr):
            address = value.get_secret_value()
            if "://" in address:
                address = re.sub(r"//[^@/]*@", "//somebody:planted@", address)
                found[name] = SecretStr(address if port is None else re.sub(r":\d+(?=/|$|\?)", f":{port}", address))
            else:
                found[name] = SecretStr("sb_secret_planted")
    return settings.model_copy(update={**found, "session_retry_seconds": 0.0})


async def test_what_people_say_is_in_no_log_and_no_repr(
    store: SessionStore,
    kill_connections: Callable[[], Awaitable[int]],
    damage_row: Callable[[int, str], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = store.session("s")
    await session.add_items([user(SAID), anything(type="function_call_output", output=SAID)])
    await kill_connections()
    await session.add_items([user(SAID)])
    await store.update_session(session.ref, title=SAID, metadata={"planted": SAID})
    await damage_row(1, DAMAGED)
    await session.get_items()
    await session.pop_item()
    await session.clear_session()
    assert "unreadable" in caplog.text
    seen = caplog.text + repr([session, store, store.settings, session.session_settings]) + str(store.settings)
    assert "planted" not in seen
    assert "half a row" not in seen


async def test_what_people_say_is_in_no_error(store: SessionStore, settings: BackendSettings) -> None:
    session = store.session("s")
    large = "planted" * (store.settings.session_max_item_bytes // 7 + 1)
    assert "planted" not in without_source(await traceback_of(session.add_items([user(large)])))
    half_a_pair = Batch.of([Row("planted \ud83d")])  # which no driver can send
    own = BackendStore(settings)
    assert "planted" not in without_source(await traceback_of(own.append(session.ref, half_a_pair)))
    await own.close()


async def test_passwords_and_keys_are_in_no_error(settings: BackendSettings, caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (with_planted_secrets(settings), with_planted_secrets(settings, port=1)):
        store = BackendStore(wrong)
        seen = await traceback_of(store.ping()) + await traceback_of(store.session("s").add_items([user("x")]))
        await store.close()
        assert "planted" not in without_source(seen + caplog.text + repr([store, wrong]) + str(wrong)), seen


def without_source(seen: str) -> str:
    """A traceback quotes the lines of this file, too."""
    return re.sub(r'File "[^"]*test_secrets.py".*\n.*\n', "", seen)


def test_a_secret_is_a_secret_to_the_settings(settings: BackendSettings) -> None:
    names: dict[str, Any] = dict(settings)
    secret = [name for name in names if re.search(r"url|key$|password|token", name) and "where" not in name]
    assert secret
    assert not [name for name in secret if isinstance(names[name], str) and "@" in names[name]]


@pytest.mark.parametrize("odd", ["\ud83d", "\0"], ids=ascii)
async def test_values_that_a_server_refuses_are_in_no_error(
    settings: BackendSettings, caplog: pytest.LogCaptureFixture, odd: str
) -> None:
    own: SessionStore = BackendStore(settings)  # as EncryptedStore hands it texts, and anybody who writes a store
    key = own.session("s").ref
    await own.append(key, Batch.of([Row("fine")], "planted"))
    bad = Batch.of([Row(f"planted {odd}")], f"planted {odd}")
    found = ""
    for call in (
        own.append(key, bad),
        own.append(key, Batch.of([Row("planted", f"planted {odd}")])),
        own.replace_tail(key, None, bad),
        own.replace_tail(key, [f"planted {odd}"], Batch.of([Row("planted")])),
        own.update_session(key, title=f"planted {odd}"),
        own.update_session(key, metadata={"planted": f"planted {odd}"}),
        own.rewrite(key, Content(None, {}, [f"planted {odd}"]), Content(None, {}, ["planted"])),
        own.canary(None, f"planted {odd}"),
    ):
        try:
            await call  # some servers take it
        except Exception as error:
            found += "".join(traceback.format_exception(error)) + repr(error)
    await own.close()
    assert "planted" not in without_source(found) + caplog.text


# ── The commands ────────────────────────────────────────────────────────────


@pytest.fixture
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server_environment, "OPENAI_API_KEY": "sk-planted"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("configured")
async def test_only_the_commands_that_show_a_conversation_show_it(
    store: SessionStore,
    damage_row: Callable[[int, str], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    call = anything(type="function_call", name="f", call_id="1", arguments='{"planted": 1}')
    await store.session("s").add_items([answer(SAID), call, anything(type="reasoning", summary=SAID), user("damaged")])
    await store.update_session(store.session("s").ref, title="The title", metadata={"planted": SAID})
    await damage_row(1, DAMAGED)
    assert "planted" in (await invoke("sessions", "show", "s")).out
    await invoke("sessions", "export", "out")
    lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:-1]))
    (tmp_path / "torn").write_bytes(b"".join(lines)[:-16])
    (tmp_path / "mixed").write_bytes(b"".join(reversed(lines)))
    (tmp_path / "other").write_bytes(b"".join([lines[0], *lines[:0:-1]]))

    seen = ""
    for command in (
        "sessions list", "sessions list --user nobody", "sessions list --cursor planned", "sessions show nobody",
        "sessions show s --json --limit 1", "sessions export no/such/file", "sessions export --session nobody",
        "sessions import out", "sessions import cut", "sessions import torn", "sessions import mixed",
        "sessions import other", "sessions import other --dry-run --on-conflict replace", "sessions import missing",
        "sessions delete s", "sessions prune --older-than 1d --yes", "doctor", "doctor --json",
        "sessions delete s --yes",
    ):  # fmt: skip
        done = await invoke(*command.split())
        seen += f"{command}: {done.out}{done.err}\n"
    assert "The title" in seen
    assert "is stored with another history" in seen
    assert "planted" not in seen + caplog.text
    assert "half a row" not in seen + caplog.text


def with_password_of(char: str, settings: BackendSettings) -> BackendSettings:
    """A wrong password with a character that ends it early, or the address, if it is not escaped."""
    changed = {}
    for name in BackendSettings.model_fields:
        if isinstance(value := getattr(settings, name), SecretStr):
            changed[name] = SecretStr(value.get_secret_value().replace("planted", f"planted{char}planted"))
    return settings.model_copy(update=changed)


@pytest.mark.parametrize("char", [*"/?#@:%[]{}\\ '\"<>|^`é\u2028\n", "%zz", ":0", "@[::1", "]@["])
async def test_a_password_stays_secret_however_it_is_written(
    settings: BackendSettings, caplog: pytest.LogCaptureFixture, char: str
) -> None:
    store = BackendStore(with_password_of(char, with_planted_secrets(settings)))
    with pytest.raises(SessionStoreError) as caught:
        await store.ping()
    await store.close()
    found = "".join(traceback.format_exception(caught.value))
    assert "planted" not in without_source(found) + caplog.text


@pytest.mark.parametrize("char", ["", "/", "@", ":"])
@pytest.mark.usefixtures("configured")
async def test_no_command_prints_a_wrong_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, char: str
) -> None:
    wrong = with_password_of(char, with_planted_secrets(load_settings()))
    for name in BackendSettings.model_fields:
        if isinstance(value := getattr(wrong, name), SecretStr):
            monkeypatch.setenv(name.upper(), value.get_secret_value())
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "0")
    for command in (["sessions", "list"], ["doctor"], ["doctor", "--json"]):
        done = await invoke(*command)
        assert done.code == 1
        assert "planted" not in done.out + done.err + caplog.text


@pytest.mark.usefixtures("configured")
def test_settings_that_cannot_be_read_name_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "planted" not in repr(Settings()) + str(Settings()) + repr(Settings().model_dump())
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "planted")
    with pytest.raises(Exception, match="SESSION_RETRY_SECONDS") as caught:
        load_settings()
    assert "planted" not in without_source("".join(traceback.format_exception(caught.value)))
