"""The function that gives user and password: passed as `credentials`, or named by a setting, which the commands use."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest
from pydantic import SecretStr

from my_agent import app
from my_agent.sessions import (
    BackendSettings,
    BackendStore,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
    open_store,
)
from my_agent.sessions.backend import ADDRESSES
from my_agent.sessions.settings import read_settings
from my_agent.settings import Settings, load_settings
from proof.support.backend import BACKEND
from proof.support.command import invoke
from proof.support.operations import session_without_store

URL = ADDRESSES[0].upper()
HOOK = URL.replace("_URL", "_CREDENTIALS")
COMMANDS = [["sessions", "list"], ["chat", "Hi"], ["doctor"]]
if BACKEND == "postgres":
    COMMANDS += [["db", "upgrade"], ["db", "status"]]
MUST = "The function `credentials` must be async and return a tuple of user and password, as text."
SHAPES = [
    "async def login(): return 'ada', '{mark}', 1",
    "async def login(): return '{mark}',",
    "async def login(): return '{mark}'",
    "async def login(): return None",
    "async def login(): return 'ada', 7",
    "async def login(): return 'ada', b'{mark}'",
    "def login(): return 'ada', '{mark}'",
    "async def login():\n    yield 'ada', '{mark}'",
]
MARK = "TOPSECRET"

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Makes a module of a text; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> str:
        name = f"login_{len([*tmp_path.glob('login_*.py')])}"
        (tmp_path / f"{name}.py").write_text(text.replace("{mark}", MARK))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return make


@pytest.fixture
def address(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of an app whose address has neither user nor password."""
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    parts = urlsplit(server_environment[URL])
    monkeypatch.setenv(URL, urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    return server_environment[URL]


def giving(url: str) -> str:
    """The text of a module with a function that gives the login of this address."""
    parts = urlsplit(url)
    login = unquote(parts.username or ""), unquote(parts.password or "")
    return f"async def login():\n    return {login!r}\n"


def settings(**more: object) -> BackendSettings:
    return read_settings(BackendSettings).model_copy(update=more)


async def refused(store: BackendStore, kind: type[Exception]) -> Exception:
    with pytest.raises(kind) as caught:
        await store.session("s").get_items()
    await store.close()
    return caught.value


# ── The setting ─────────────────────────────────────────────────────────────


async def test_everything_that_connects_uses_it(address: str, module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOOK, f"{module(giving(address))}:login")
    for command in COMMANDS:
        done = await invoke(*command)
        assert done.code == 0, (command, done)
    async with open_store() as store:
        assert len(await store.session("s").get_items()) == 0
    async with app.open_app_store(load_settings()) as store:
        assert len((await store.list_sessions()).sessions) == 1  # of `chat`
    async with session_without_store(settings()) as session:
        await session.add_items([{"role": "user", "content": "Hi"}])


async def test_it_counts_more_than_the_login_of_the_address(
    address: str, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(address)
    wrong = parts._replace(netloc=f"ada:planted@{parts.netloc.rpartition('@')[2]}")
    monkeypatch.setenv(URL, urlunsplit(wrong))
    monkeypatch.setenv(HOOK, f"{module(giving(address))}:login")
    assert (await invoke("sessions", "list")).code == 0


async def test_an_argument_counts_more_than_the_setting(
    address: str, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(giving(address))
    monkeypatch.setenv(HOOK, "no_such_module:login")
    login: Any = {}
    exec(giving(address), login)
    async with BackendStore(settings(), credentials=login["login"]) as store:
        assert await store.session("s").get_items() == []
    monkeypatch.setenv(HOOK, f"{name}:login")

    async def wrong() -> tuple[str, str]:
        return "ada", MARK

    await refused(BackendStore(settings(), credentials=wrong), StoreRefused)


async def test_an_argument_with_a_password_is_used_as_it_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function gives the login of another server."""
    monkeypatch.setenv(HOOK, "no_such_module:login")
    kind: Any = type(session_without_store(settings()))
    if urlsplit(address).password:
        async with kind("s", address) as session:
            assert await session.get_items() == []
    with pytest.raises(SettingMissing, match=HOOK):
        async with kind("s", read_settings(BackendSettings).model_dump()[ADDRESSES[0]].get_secret_value()) as session:
            await session.get_items()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:login", "there is no such module"),
        ("my_agent.no_such:login", "there is no such module"),
        ("json:no_such", "the module has no such function"),
        ("json:decoder.no_such", "the module has no such function"),
        ("json:__name__", "this is not a function"),
        ("json:", "this is not written module:function"),
        ("json.dumps", "this is not written module:function"),
        (f"ada:{MARK}", "there is no such module"),
        (f"json:{MARK}", "the module has no such function"),
        (f"ada@example.com:{MARK}!", "this is not written module:function"),
        (f"{MARK}", "this is not written module:function"),
    ],
)
@pytest.mark.usefixtures("address")
async def test_a_name_of_nothing_is_one_sentence(
    command: list[str], value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOOK, value)
    assert MARK not in repr(load_settings()) + str(load_settings())
    done = await invoke(*command)
    assert done.code == 1
    told = done.out + done.err
    assert [line for line in told.splitlines() if HOOK in line and problem in line]
    assert command == ["doctor"] or done.err.count("Error: ") == done.err.count("\n") == 1
    assert "Trying again" not in told
    assert MARK not in told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raise RuntimeError('{mark}')", "importing the module raised RuntimeError"),
        ("raise SystemExit(7)", "importing the module raised SystemExit"),
        ("import no_such_dependency", "importing the module raised ModuleNotFoundError: there is no module no_such"),
        ("{}.x", "importing the module raised AttributeError"),
        ("int('{mark}')", "importing the module raised ValueError"),
        ("(", "importing the module raised SyntaxError"),
    ],
)
@pytest.mark.usefixtures("address")
async def test_a_module_that_cannot_be_imported_is_one_sentence(
    text: str, problem: str, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOOK, f"{module(text)}:login")
    done = await invoke("sessions", "list")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith(f"Error: {HOOK}: {problem}")
    assert MARK not in done.err
    error = await refused(BackendStore(settings()), SettingMissing)
    assert error.__cause__ is not None  # for those who write the module


@pytest.mark.usefixtures("address")
async def test_an_error_about_a_name_carries_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"ada:{MARK}", f"json:{MARK}", f"{MARK}"):
        monkeypatch.setenv(HOOK, value)
        error = await refused(BackendStore(settings()), SettingMissing)
        error.__traceback__ = None
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert MARK not in "".join(shown.format())


def test_the_embedded_server_has_a_login_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOOK, "no_such_module:login")
    monkeypatch.setenv("DEV_SERVER", "1")
    monkeypatch.setattr(app, "PROJECT", tmp_path)

    async def sessions() -> int:
        async with app.open_app_store(Settings()) as store:
            return len((await store.list_sessions()).sessions)

    assert asyncio.run(sessions()) == 0


# ── The function ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.usefixtures("address")
async def test_what_is_no_such_function_is_told_at_once(
    text: str, module: Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    namespace: dict[str, Any] = {}
    exec(text.replace("{mark}", MARK), namespace)
    with caplog.at_level(logging.WARNING):
        error = await refused(BackendStore(settings(), credentials=namespace["login"]), SessionStoreError)
    assert str(error) == MUST
    assert caplog.text == ""

    monkeypatch.setenv(HOOK, f"{module(text)}:login")
    for command in COMMANDS:
        done = await invoke(*command)
        told = done.out + done.err
        assert done.code == 1
        assert MUST in told
        assert "Trying again" not in told
        assert MARK not in told


@pytest.mark.parametrize("raised", ["KeyError", "CancelledError", "NameError"])  # but for the last, it may pass
@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.usefixtures("address")
async def test_what_it_raises_is_told_as_such(
    kind: str, raised: str, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(f"from asyncio import CancelledError\n{kind} login(): raise {raised}('{MARK}')")
    monkeypatch.setenv(HOOK, f"{name}:login")
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "0")
    for command in COMMANDS:
        done = await invoke(*command)
        assert done.code == 1
        assert f"The function `credentials` gave no user and password: {raised}." in done.out + done.err
        assert MARK not in done.out + done.err
    error = await refused(BackendStore(settings()), SessionStoreError if raised == "NameError" else StoreUnavailable)
    assert MARK not in str(error)
    cause: BaseException | None = error
    while cause is not None and type(cause).__name__ != raised:
        cause = cause.__cause__
    assert cause is not None


@pytest.mark.usefixtures("address")
async def test_a_login_that_is_refused_names_the_function(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module("async def login(): return 'ada', '{mark}'")

    async def login() -> tuple[str, str]:
        return "ada", MARK

    named = "refused the login. Check the user and password that the function `credentials` returns"
    error = await refused(BackendStore(settings(), credentials=login), StoreRefused)
    assert named in str(error)
    assert URL not in str(error)
    monkeypatch.setenv(HOOK, f"{name}:login")
    for command in COMMANDS:
        done = await invoke(*command)
        told = done.out + done.err
        assert done.code == 1
        assert named in told
        assert MARK not in told


async def test_the_source_of_an_import_does_not_get_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That may be anybody's server."""
    monkeypatch.setenv(HOOK, "no_such_module:login")
    source: Any = getattr(import_module(f"my_agent.sessions.{BACKEND}.sdk"), f"open_{BACKEND}_source")
    try:
        async with source(address) as found:
            assert await found.session_ids() == []
    except SessionStoreError as error:
        assert HOOK not in str(error)  # noqa: PT017 - the server was asked, and has nothing of the SDK


def test_the_setting_is_not_shown() -> None:
    given = BackendSettings.model_validate({f"{HOOK.lower()}": f"ada:{MARK}", ADDRESSES[0]: SecretStr("x")})
    assert MARK not in repr(given) + str(given)
