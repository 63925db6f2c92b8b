"""Every way in which Supabase says no is told with what to do, and without a secret."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from my_agent.sessions import (
    SchemaOutdated,
    SessionRef,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
    SupabaseSession,
    SupabaseSettings,
    SupabaseStore,
    WrongOwner,
)
from my_agent.sessions.errors import ItemTooLarge
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.retry import with_retries
from my_agent.sessions.supabase.client import Caller
from proof.supabase.fixtures import Environment, ask, sessions_locked, settings_for, token
from proof.support.helpers import user

KEY = SessionRef("", "s")
ADA, BOB = "6d8f0a3e-0000-4000-8000-00000000000a", "6d8f0a3e-0000-4000-8000-00000000000b"
PLANTED = "sb_secret_planted"

Kill = Callable[[], Awaitable[int]]


async def refusal(settings: SupabaseSettings, access_token: str | None = None) -> SessionStoreError:
    """Why a store does not open."""
    store = SupabaseStore(settings, access_token)
    with pytest.raises(SessionStoreError) as caught:
        await store.ping()
    await store.close()
    said = str(caught.value)
    assert "planted" not in said
    assert not settings.supabase_key or settings.supabase_key.get_secret_value().strip() not in said.split()
    assert access_token is None or access_token not in said
    return caught.value


async def lost_call(settings: SupabaseSettings) -> SessionStoreError:
    """Why a call fails that a store makes once it is open."""
    caller = Caller(settings, None)
    with pytest.raises(SessionStoreError) as caught:
        await caller.call("agent_session_pop", {})
    await caller.close()
    return caught.value


def somewhere(url: str, **more: object) -> SupabaseSettings:
    return settings_for({"SUPABASE_URL": url, "SUPABASE_KEY": PLANTED}, **more)


# ── Settings ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, "SUPABASE_URL is not set"),
        ("planted", "not the address of a project"),
        ("project.supabase.co", "not the address of a project"),
        ("postgresql://postgres:planted@h:5432/postgres", "goes into SUPABASE_DB_URL"),
        ("https://user:planted@h", "not the address of a project"),
        ("https://h:port", "not the address of a project"),
        ("https://h/?key=planted", "not the address of a project"),
        ("https://my project.supabase.co", "not the address of a project"),
        ("https://é.supabase.co", "not the address of a project"),
        ("http://[::", "not the address of a project"),
        ("https://<project>.supabase.co", "not the address of a project"),
    ],
)
async def test_an_address_that_cannot_be_used_is_told(url: str | None, words: str) -> None:
    error = await refusal(SupabaseSettings(supabase_url=url, supabase_key=SecretStr(PLANTED)))
    assert isinstance(error, SettingMissing)
    assert words in str(error)


@pytest.mark.parametrize("end", ["", "/", "/rest/v1", "/rest/v1/", " "])
def test_an_address_may_end_as_people_copy_it(end: str) -> None:
    settings = somewhere(f"https://abc.supabase.co{end}")
    assert (settings.url, settings.where) == ("https://abc.supabase.co", "abc.supabase.co")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "SUPABASE_KEY is not set"),
        ("sbp_planted", "personal access token"),
        ("planted key", "holds characters that no key has"),
        ("planted\nkey", "holds characters that no key has"),
        ("planté", "holds characters that no key has"),
        (" ", "holds characters that no key has"),
    ],
)
async def test_a_key_that_cannot_be_used_is_told(key: str | None, words: str) -> None:
    secret = None if key is None else SecretStr(key)
    error = await refusal(SupabaseSettings(supabase_url="http://127.0.0.1:1", supabase_key=secret))
    assert isinstance(error, SettingMissing)
    assert words in str(error)
    assert "Project settings → API keys" in str(error)


def test_keys_old_and_new_are_told_apart(project: Environment) -> None:
    old = {role: token(project, None, role=role) for role in ("service_role", "anon", "stranger")}
    keys = ["sb_secret_x", "sb_publishable_x", *old.values(), "x", "x.W10.x", "x.e30"]
    rights = [somewhere("https://h", supabase_key=SecretStr(key)).rights for key in keys]
    assert rights == ["secret", "publishable", "secret", "publishable", *["unknown"] * 4]


async def test_a_session_without_settings_names_them() -> None:
    with pytest.raises(SettingMissing, match="SUPABASE_URL is not set"):
        SupabaseSession("s")
    with pytest.raises(SettingMissing, match="SUPABASE_KEY is not set"):
        SupabaseSession("s", "https://h")


async def test_no_secret_is_shown_or_logged(project: Environment, caplog: pytest.LogCaptureFixture) -> None:
    settings, access_token = settings_for(project), token(project, ADA)
    with caplog.at_level(logging.DEBUG):
        session = SupabaseSession("s", settings=settings, access_token=access_token)
        await session.add_items([user("an item")])
        await session.get_items()
        shown = f"{settings!r} {session!r} {session.store!r} {vars(session)!r} {vars(session.store)!r}"
        await session.close()
    for secret in (project["SUPABASE_KEY"], access_token, project["SUPABASE_DB_URL"], "an item"):
        assert secret not in caplog.text
        assert secret not in shown


# ── Keys, tokens and rights ─────────────────────────────────────────────────


async def test_a_wrong_key_is_refused(project: Environment) -> None:
    error = await refusal(settings_for(project, supabase_key=SecretStr(PLANTED)))
    assert isinstance(error, StoreRefused)
    assert "refuses SUPABASE_KEY. Copy it again (Project settings → API keys" in str(error)


async def test_a_publishable_key_stores_for_nobody(project: Environment) -> None:
    store = SupabaseStore(settings_for(project, supabase_key=SecretStr(project["SUPABASE_PUBLISHABLE_KEY"])))
    with pytest.raises(StoreRefused, match="only signed-in users may store: pass their access_token, or use"):
        await store.append(KEY, Batch.of([Row("x")]))
    await store.close()


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": 1}, "the access token has expired. Take a fresh one"),
        ({"nbf": 2**33, "exp": 2**34}, "does not accept the access token"),
        ({"role": "planted"}, "does not accept the access token"),
    ],
)
async def test_a_token_that_the_server_does_not_accept_is_refused(
    project: Environment, claims: dict[str, object], words: str
) -> None:
    settings = settings_for(project, supabase_key=SecretStr(project["SUPABASE_PUBLISHABLE_KEY"]))
    store = SupabaseStore(settings, token(project, **{"user_id": ADA, **claims}))  # type: ignore[arg-type]
    with pytest.raises(StoreRefused, match=words):
        await store.session("s").add_items([user("x")])
    await store.close()


@pytest.mark.parametrize("part", [0, 2])
async def test_a_forged_token_is_refused(settings: SupabaseSettings, project: Environment, part: int) -> None:
    parts = token(project, ADA).split(".")
    parts[part] = parts[part][::-1]
    error = await refusal(settings, ".".join(parts))
    assert isinstance(error, StoreRefused)
    assert "does not accept the access token" in str(error)


async def test_a_token_that_expires_on_the_way_is_told(settings: SupabaseSettings, project: Environment) -> None:
    # PostgREST allows 30 seconds for clocks that differ.
    store = SupabaseStore(settings, token(project, ADA, exp=int(time.time()) - 29))
    await store.session("s").add_items([user("x")])

    async def use_it_for_long() -> None:
        async with asyncio.timeout(10):
            while True:
                await store.session("s").get_items()
                await asyncio.sleep(0.2)

    with pytest.raises(StoreRefused, match=r"has expired. Take a fresh one .*, and make a new session with it"):
        await use_it_for_long()
    await store.close()


async def test_a_user_cannot_write_for_another(settings: SupabaseSettings, project: Environment) -> None:
    store = SupabaseStore(settings, token(project, BOB))
    with pytest.raises(WrongOwner, match="may only write sessions of their own"):
        await store.append(SessionRef(ADA, "s"), Batch.of([Row("forged")]))
    assert await ask(project, "SELECT count(*) FROM agent_sessions") == 0
    await store.close()


async def test_what_only_the_secret_key_may_do_is_told(settings: SupabaseSettings, project: Environment) -> None:
    store = SupabaseStore(settings, token(project, ADA))
    with pytest.raises(StoreRefused, match="Signed-in users may not do this; the secret key may"):
        await store.prune(datetime.now(UTC))
    await store.close()


async def test_a_missing_grant_is_told(store: SupabaseStore, project: Environment) -> None:
    await ask(project, "REVOKE SELECT ON agent_sessions FROM service_role")
    try:
        with pytest.raises(StoreRefused, match=r"permission denied for table agent_sessions. Run `.* db upgrade`"):
            await store.tail(KEY, None)
    finally:
        await ask(project, "GRANT SELECT ON agent_sessions TO service_role")


# ── The schema ──────────────────────────────────────────────────────────────


@asynccontextmanager
async def without_functions(project: Environment) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hide what a store asks first; gives the way to bring it back earlier."""
    await ask(project, "ALTER FUNCTION agent_session_schema_version RENAME TO hidden")
    await ask(project, "NOTIFY pgrst, 'reload schema'")

    async def restore() -> None:
        await ask(project, "ALTER FUNCTION hidden RENAME TO agent_session_schema_version")
        await ask(project, "NOTIFY pgrst, 'reload schema'")

    try:
        yield restore
    finally:
        if await ask(project, "SELECT to_regproc('public.hidden') IS NOT NULL"):
            await restore()


async def test_a_missing_schema_names_the_command(settings: SupabaseSettings, project: Environment) -> None:
    async with without_functions(project):
        error = await refusal(settings)
    assert isinstance(error, SchemaOutdated)
    assert "db upgrade`; if that changes nothing, run the SQL: notify pgrst, 'reload schema'" in str(error)


async def test_a_schema_that_the_api_has_not_noticed_yet_is_waited_for(
    settings: SupabaseSettings, project: Environment
) -> None:
    async with without_functions(project) as restore, asyncio.timeout(10):
        store = SupabaseStore(settings)
        opening = asyncio.create_task(store.ping())
        await asyncio.sleep(0.2)
        await restore()
        await opening
        await store.close()


async def test_a_function_that_the_api_has_not_noticed_yet_is_waited_for(
    settings: SupabaseSettings, project: Environment
) -> None:
    """It knew those of an earlier migration, and so let the store open."""
    async with SupabaseStore(settings) as store:
        await store.append(KEY, Batch.of([Row("a")]))
        await ask(project, "ALTER FUNCTION agent_session_tail RENAME TO hidden")
        await ask(project, "NOTIFY pgrst, 'reload schema'")
        await asyncio.sleep(0.5)
        reading = asyncio.create_task(store.tail(KEY, None))
        await asyncio.sleep(0.2)
        assert not reading.done()
        await ask(project, "ALTER FUNCTION hidden RENAME TO agent_session_tail")
        await ask(project, "NOTIFY pgrst, 'reload schema'")
        assert await reading == ["a"]


@pytest.mark.parametrize(
    ("versions", "words"),
    [("1, 1", "Run `.* db upgrade`"), ("99999999999999, 99999999999999", "made for newer programs than this one")],
)
async def test_a_schema_that_does_not_fit_is_refused(
    settings: SupabaseSettings, project: Environment, versions: str, words: str
) -> None:
    definition = await ask(project, "SELECT pg_get_functiondef('agent_session_schema_version'::regproc)")
    body = f"LANGUAGE sql IMMUTABLE AS 'SELECT array[{versions}]::bigint[]'"
    await ask(project, f"CREATE OR REPLACE FUNCTION agent_session_schema_version() RETURNS bigint[] {body}")
    try:
        store = SupabaseStore(settings)
        for _ in range(2):  # a store that did not fit is not trusted the second time
            with pytest.raises(SchemaOutdated, match=words):
                await store.tail(KEY, None)
        await store.close()
    finally:
        await ask(project, definition)


# ── The database behind the API ─────────────────────────────────────────────


async def test_a_statement_that_takes_too_long_is_told(settings: SupabaseSettings, project: Environment) -> None:
    await ask(project, "ALTER ROLE service_role SET statement_timeout = '200ms'")
    await ask(project, "NOTIFY pgrst, 'reload config'")
    try:
        async with SupabaseStore(settings) as store:
            async with sessions_locked(project):
                with pytest.raises(StoreUnavailable, match="canceling statement due to statement timeout") as caught:
                    await asyncio.gather(*(store.tail(KEY, None) for _ in range(5)))
            assert not caught.value.maybe_applied
    finally:
        await ask(project, "ALTER ROLE service_role RESET statement_timeout")
        await ask(project, "NOTIFY pgrst, 'reload config'")


async def test_a_database_that_lets_nobody_in_is_waited_for(
    store: SupabaseStore, project: Environment, kill_connections: Kill, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(project, "ALTER ROLE authenticator CONNECTION LIMIT 0")
    try:
        await kill_connections()
        with pytest.raises(StoreUnavailable, match=r"Supabase at 127\.0\.0\.1"):
            # The API notices its lost connections one by one.
            await asyncio.gather(*(store.tail(KEY, None) for _ in range(20)))
        adding = asyncio.create_task(store.session("s").add_items([user("x")]))
        while "Trying again" not in caplog.text:  # noqa: ASYNC110 - a log sends no event
            await asyncio.sleep(0.01)
    finally:
        await ask(project, "ALTER ROLE authenticator CONNECTION LIMIT -1")
    await adding
    assert len(await store.tail(KEY, None)) == 1


@pytest.mark.parametrize("content", ["NUL \0", "half \ud800"])
async def test_what_the_database_cannot_hold_is_refused(store: SupabaseStore, content: str) -> None:
    with pytest.raises(SessionStoreError) as caught:
        await store.append(KEY, Batch.of([Row(f"planted {content}")]))
    assert "planted" not in str(caught.value)
    assert await store.tail(KEY, None) == []


async def test_metadata_that_json_cannot_carry_is_refused(store: SupabaseStore) -> None:
    await store.append(KEY, Batch.of([Row("x")]))
    with pytest.raises(TypeError):
        await store.update_session(KEY, metadata={"planted": b"bytes"})
    for value in (float("nan"), "\ud800", "\0"):
        with pytest.raises(SessionStoreError) as caught:
            await store.update_session(KEY, metadata={"planted": value})
        assert "planted" not in str(caught.value)


# ── What stands in front of the database, or instead of it ──────────────────


async def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    error = await refusal(somewhere(f"http://127.0.0.1:{port}"))
    assert isinstance(error, StoreUnavailable)
    assert not error.maybe_applied
    assert f"Cannot reach Supabase at 127.0.0.1:{port}" in str(error)


async def test_a_host_that_does_not_exist_is_named() -> None:
    error = await refusal(somewhere("https://nowhere.invalid"))
    assert isinstance(error, StoreUnavailable)
    assert "nowhere.invalid" in str(error)


class Frontage:
    """Answers everything with one answer, as proxies do; keeps what it was asked."""

    def __init__(self, status: int, body: str, headers: str) -> None:
        head = f"HTTP/1.1 {status} Planted\r\nContent-Length: {len(body.encode())}\r\n{headers}\r\n"
        self.answer = (head + body).encode()
        self.requests: list[str] = []
        self.seconds = 0.0
        """How long it thinks about an answer."""
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SupabaseSettings]:
        """Settings that lead here."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with server, asyncio.timeout(20):
            yield somewhere(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await asyncio.gather(*self._serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # some callers do not wait for the answer
            while head := await reader.read(65536):
                self.requests.append(head.decode())
                await asyncio.sleep(self.seconds)
                writer.write(self.answer)
            writer.close()
            await writer.wait_closed()


HTML, JSON = "Content-Type: text/html\r\n", "Content-Type: application/json\r\n"
VERSIONS = '["20261127000001","20261123000001",null,null]'


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "words"),
    [
        (200, HTML, "<html>planted</html>", StoreRefused, "is not a REST API of Supabase"),
        (200, JSON, '{"planted": 1}', StoreRefused, "is not a Supabase API. Correct SUPABASE_URL"),
        (302, HTML + "Location: /planted\r\n", "", StoreRefused, "is not a REST API of Supabase"),
        (400, HTML, "<html>planted</html>", SessionStoreError, "refused the call (HTTP 400)"),
        (400, JSON, '{"code":"","message":"","hint":null}', StoreUnavailable, "the connection to the database broke"),
        (401, "", "", StoreRefused, "refuses SUPABASE_KEY"),
        (401, JSON, '{"message":"Invalid API key","hint":"planted"}', StoreRefused, "refuses SUPABASE_KEY"),
        (402, JSON, '{"message":"planted"}', StoreRefused, "is restricted"),
        (404, HTML, "<html>planted</html>", StoreRefused, "is not a REST API of Supabase"),
        (404, JSON, '{"code":"PGRST106","message":"m","details":"planted"}', StoreRefused, "the schema public"),
        (413, HTML, "<html>planted</html>", ItemTooLarge, "lower SESSION_MAX_ITEM_BYTES"),
        (429, HTML, "error code: 1015", StoreUnavailable, "too many requests"),
        (500, JSON, '{"message":"planted"}', StoreUnavailable, "cannot serve now (HTTP 500)"),
        (502, HTML, "<html>planted</html>", StoreUnavailable, "cannot serve now (HTTP 502)"),
        (503, JSON, '{"code":"PGRST002","message":"No cache."}', StoreUnavailable, "no database to ask: No cache."),
        (521, HTML, "<html>planted</html>", StoreUnavailable, "is down"),
        (540, JSON, '{"message":"planted"}', StoreRefused, "is paused. Restore the project"),
        (401, JSON, '{"code":"PGRST303","message":"JWT expired"}', StoreRefused, "SUPABASE_KEY has expired"),
        (404, JSON, '{"code":"PGRST205","message":"m"}', SchemaOutdated, "db upgrade"),
        (500, JSON, '{"code":"XX000","message":"m","details":"planted"}', SessionStoreError, "(HTTP 500 XX000): m"),
        (500, JSON, "[planted", StoreUnavailable, "cannot serve now (HTTP 500)"),
    ],
)
async def test_an_answer_of_somebody_else_is_understood(
    status: int, headers: str, body: str, kind: type[SessionStoreError], words: str
) -> None:
    async with Frontage(status, body, headers).running() as settings:
        error = await refusal(settings)
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(("status", "maybe"), [(429, False), (521, False), (500, True), (502, True), (504, True)])
async def test_an_answer_tells_whether_the_call_may_have_been_carried_out(status: int, maybe: bool) -> None:
    async with Frontage(status, "", HTML).running() as settings:
        error = await lost_call(settings)
    assert isinstance(error, StoreUnavailable)
    assert error.maybe_applied is maybe


async def test_an_answer_that_is_no_http_is_a_lost_connection() -> None:
    frontage = Frontage(200, "", "")
    frontage.answer = b"SSH-2.0-planted\r\n\r\n"
    async with frontage.running() as settings:
        error = await lost_call(settings)
    assert isinstance(error, StoreUnavailable)
    assert error.maybe_applied


async def test_no_cookie_of_one_user_travels_with_another() -> None:
    frontage = Frontage(200, VERSIONS, JSON + "Set-Cookie: user=ada; Path=/\r\n")
    async with frontage.running() as settings:
        store = SupabaseStore(settings)
        await store.ping()
        await store.ping()
        await store.close()
    assert len(frontage.requests) == 2
    assert all("apikey: sb_secret_planted" in request.replace("apiKey", "apikey") for request in frontage.requests)
    assert not any("cookie" in request.lower() for request in frontage.requests)


async def test_calls_that_waited_in_vain_leave_a_clean_pool() -> None:
    frontage = Frontage(200, VERSIONS, JSON)
    async with frontage.running() as settings:
        hasty = settings.model_copy(update={"supabase_pool_max": 4, "supabase_timeout_seconds": 0.02})
        store = SupabaseStore(hasty)
        await with_retries(store.ping, 5)
        frontage.seconds = 0.018  # an answer comes just when others give up waiting for their turn
        for _ in range(60):
            await asyncio.gather(*(store.tail(KEY, None) for _ in range(40)), return_exceptions=True)
        frontage.seconds = 0.0
        await with_retries(store.ping, 5)
        await store.close()
