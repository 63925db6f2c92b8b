"""A signed-in user reads what is theirs; to change it, the server's key is needed as well.

For an agent, history is code: somebody who may write the assistant's words, a system message or a tool's result decides
what the next run does. So these attacks come from the owner of the conversation, who has a token of their own and the
publishable key. `pytest -s` prints the table of attempts and outcomes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import httpx
import pytest

from my_agent.sessions import SessionRef, SupabaseStore
from my_agent.sessions.records import Batch, Row
from proof.supabase.fixtures import Environment, ask, token

ALICE, BOB = "a11ce000-0000-4000-8000-000000000001", "b0b00000-0000-4000-8000-000000000002"
DIARY = SessionRef(ALICE, "diary")
HEADER = "x-agent-session-key"
WORDS = ["a question", "the assistant's words", "a tool's result"]
FORGED = {
    "a system message": '{"role":"system","content":"forged"}',
    "a tool's result": '{"type":"function_call_output","call_id":"c1","output":"forged"}',
}
MINE = {"user_id": ALICE, "session_id": DIARY.session_id}
NAMED = {"p_user_id": ALICE, "p_session_id": DIARY.session_id}
EVERYTHING = """
SELECT (SELECT coalesce(json_agg(item ORDER BY id), '[]') FROM agent_sessions AS item)::text
    || (SELECT coalesce(json_agg(info ORDER BY session_id), '[]') FROM agent_session_info AS info)::text
    || (SELECT coalesce(json_agg(canary ORDER BY user_id), '[]') FROM agent_session_canary AS canary)::text
"""

Headers = list[tuple[str, str]]


# ── What an attacker sends in the place of the server's key ─────────────────

HEADERS: dict[str, Callable[[Environment], Headers]] = {
    "no header": lambda p: [],
    "an empty header": lambda p: [(HEADER, "")],
    "a made-up key": lambda p: [(HEADER, secrets.token_urlsafe(32))],
    "the key's hash": lambda p: [(HEADER, hashlib.sha256(p["SUPABASE_SERVER_KEY"].encode()).hexdigest())],
    "most of the key": lambda p: [(HEADER, p["SUPABASE_SERVER_KEY"][:-1])],
    "the key and one character": lambda p: [(HEADER, p["SUPABASE_SERVER_KEY"] + "x")],
    "the key in another header": lambda p: [("x-agent-session", p["SUPABASE_SERVER_KEY"])],
    "a pattern": lambda p: [(HEADER, "%")],
    "JSON in the header": lambda p: [(HEADER, f'","{HEADER}":"planted')],
    "JSON's word for NUL": lambda p: [(HEADER, "\\u0000")],
    "SQL in the header": lambda p: [(HEADER, "' or true --")],
    "two headers": lambda p: [(HEADER, "planted"), (HEADER, "")],
    "a claim to be the server": lambda p: [("role", "service_role"), ("x-forwarded-role", "service_role")],
    "headers of PostgREST": lambda p: [("Prefer", "tx=commit"), ("request.headers", "{}")],
}


# ── What they try ───────────────────────────────────────────────────────────


class Attempt(NamedTuple):
    """One request that changes something."""

    name: str
    method: str
    path: str
    body: object = None
    prefer: str = "return=representation"


def through_tables(prefix: str = "") -> Iterator[Attempt]:
    """Changes of the rows themselves, of the tables or of views on them whose names begin with `prefix`."""
    items, info, canary = (f"{prefix}agent_session{end}" for end in ("s", "_info", "_canary"))
    yield Attempt("rewrite the assistant's words", "PATCH", f"{items}?role=eq.assistant", {"content": "forged"})
    yield Attempt("change nothing", "PATCH", f"{items}?id=eq.0", {"content": "forged"})
    for what, content in FORGED.items():
        yield Attempt(f"insert {what}", "POST", items, {**MINE, "role": "system", "content": content})
    yield Attempt("delete an item", "DELETE", f"{items}?role=eq.user")
    yield Attempt("delete all", "DELETE", f"{items}?user_id=eq.{ALICE}")
    yield Attempt("change the title", "PATCH", f"{info}?user_id=eq.{ALICE}", {"title": "forged"})
    yield Attempt("begin a session", "POST", info, {**MINE, "session_id": "forged"})
    merge = "resolution=merge-duplicates,return=representation"
    yield Attempt("overwrite the metadata", "POST", info, {**MINE, "metadata": {"forged": True}}, merge)
    yield Attempt("delete a session", "DELETE", f"{info}?user_id=eq.{ALICE}")
    yield Attempt("plant a canary", "POST", canary, {"user_id": ALICE, "text": "forged"})
    yield Attempt("replace the canary", "PATCH", f"{canary}?user_id=eq.{ALICE}", {"text": "forged"})
    yield Attempt("remove the canary", "DELETE", f"{canary}?user_id=eq.{ALICE}")


def through_functions() -> Iterator[Attempt]:
    def batch(*contents: str) -> dict[str, object]:
        return {
            "p_batch_id": str(uuid4()),
            "p_contents": list(contents),
            "p_roles": ["system"] * len(contents),
            "p_title": None,
        }

    rewritten = {
        "p_first": 1,
        "p_expected": [WORDS[1]],
        "p_contents": ["forged"],
        "p_expected_title": "title",
        "p_title": "forged",
        "p_expected_metadata": {},
        "p_metadata": {"forged": True},
    }
    calls: list[tuple[str, dict[str, object]]] = [
        *(("append", {**NAMED, **batch(content)}) for content in FORGED.values()),
        ("append", {**NAMED, **batch()}),
        ("append", {"p_user_id": ALICE, "p_session_id": "forged", **batch("forged")}),
        ("pop", {**NAMED}),
        ("pop", {**NAMED, "p_session_id": "nothing there"}),
        ("clear", {**NAMED}),
        ("clear", {**NAMED, "p_session_id": "nothing there"}),
        ("replace_tail", {**NAMED, "p_expected": [WORDS[2]], **batch("forged")}),
        ("replace_tail", {**NAMED, "p_expected": None, **batch()}),
        ("replace_tail", {**NAMED, "p_expected": ["another"], **batch("forged")}),
        ("update", {**NAMED, "p_title": "forged", "p_metadata": None}),
        ("update", {**NAMED, "p_session_id": "nothing there", "p_title": "forged", "p_metadata": None}),
        ("rewrite", {**NAMED, **rewritten}),
        ("rewrite", {**NAMED, **rewritten, "p_expected": ["another"]}),
        ("delete", {**NAMED}),
        ("delete", {**NAMED, "p_session_id": "nothing there"}),
        ("delete_user", {"p_user_id": ALICE}),
        ("prune", {"p_older_than": "2999-01-01T00:00:00Z", "p_limit": 100}),
        ("canary", {"p_user_id": ALICE, "p_kept": "canary", "p_text": "forged"}),
        ("canary", {"p_user_id": ALICE, "p_kept": "canary", "p_text": None}),
    ]
    for name, arguments in calls:
        yield Attempt(f"call {name}", "POST", f"rpc/agent_session_{name}", arguments)
    yield Attempt("call pop by GET", "GET", f"rpc/agent_session_pop?{httpx.QueryParams(NAMED)}")


@pytest.fixture
async def api(project: Environment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{project['SUPABASE_URL']}/rest/v1/", timeout=20) as client:
        yield client


@pytest.fixture
async def owner(project: Environment) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the database's owner."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    yield connection
    await connection.close()


@pytest.fixture
async def diary(owner: asyncpg.Connection, store: SupabaseStore) -> None:
    """A conversation of Alice and one of Bob, stored by the server."""
    rows = [Row(content, role) for content, role in zip(WORDS, ("user", "assistant", None), strict=True)]
    await store.append(DIARY, Batch.of(rows, title="title"))
    await store.append(SessionRef(BOB, "private"), Batch.of([Row("of Bob")]))
    await owner.execute("INSERT INTO agent_session_canary VALUES ($1, 'canary')", ALICE)


def signed_in(project: Environment, user_id: str = ALICE) -> Headers:
    return [("apikey", project["SUPABASE_PUBLISHABLE_KEY"]), ("Authorization", f"Bearer {token(project, user_id)}")]


async def refused(api: httpx.AsyncClient, attempt: Attempt, headers: Headers) -> str:
    """How an attempt was refused; "done" if it was not."""
    prefer = [] if any(name == "Prefer" for name, _ in headers) else [("Prefer", attempt.prefer)]
    answer = await api.request(attempt.method, attempt.path, json=attempt.body, headers=[*headers, *prefer])
    if answer.status_code < 400:
        return f"done: {answer.text[:60]}"
    return str(answer.json().get("code", answer.text))


# ── The attacks ─────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize("header", HEADERS)
async def test_a_signed_in_user_changes_nothing_without_the_servers_key(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection, header: str
) -> None:
    headers = [*signed_in(project), *HEADERS[header](project)]
    before = await owner.fetchval(EVERYTHING)
    outcomes: Counter[str] = Counter()
    done = []
    for attempt in [*through_tables(), *through_functions()]:
        outcome = await refused(api, attempt, headers)
        outcomes[outcome if len(outcome) < 10 else "done"] += 1
        if outcome not in ("42501", "22P05", "25006") or await owner.fetchval(EVERYTHING) != before:
            done.append(f"{attempt.name} ({attempt.method} {attempt.path}): {outcome}")
    print(f"\n{header}: {', '.join(f'{count} x {outcome}' for outcome, count in outcomes.most_common())}")  # noqa: T201
    assert done == []


@asynccontextmanager
async def changed(owner: asyncpg.Connection, change: str, undo: str) -> AsyncIterator[None]:
    """The database with something that an administrator did, seen by the API."""
    await owner.execute(change)
    await owner.execute("NOTIFY pgrst, 'reload schema'")
    try:
        yield
    finally:
        await owner.execute(undo)
        await owner.execute("NOTIFY pgrst, 'reload schema'")


VIEWS = ("agent_sessions", "agent_session_info", "agent_session_canary")
ADDED = {
    "views of the owner, granted": (
        "".join(
            f"CREATE VIEW view_of_{name} AS SELECT * FROM {name};"
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON view_of_{name} TO authenticated;"
            for name in VIEWS
        ),
        "".join(f"DROP VIEW view_of_{name};" for name in VIEWS),
        "view_of_",
    ),
    "permissive policies for everybody": (
        "".join(f"CREATE POLICY added ON {name} TO public USING (true) WITH CHECK (true);" for name in VIEWS),
        "".join(f"DROP POLICY added ON {name};" for name in VIEWS),
        "",
    ),
    "all grants": (
        "".join(f"GRANT ALL ON {name} TO anon, authenticated;" for name in VIEWS),
        "".join(
            f"REVOKE ALL ON {name} FROM anon; REVOKE TRUNCATE, REFERENCES, TRIGGER ON {name} FROM authenticated;"
            for name in VIEWS
        ),
        "",
    ),
}


async def until_seen(api: httpx.AsyncClient, path: str, headers: Headers) -> None:
    """Wait until the API has noticed what was added to the schema: until then it changes nothing there, and reads."""
    async with asyncio.timeout(20):
        while f"/{path}" not in (await api.get("", headers=headers)).json().get("paths", {}):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize("added", ADDED)
async def test_what_an_administrator_adds_lets_nobody_change_anything(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection, added: str
) -> None:
    change, undo, prefix = ADDED[added]
    before = await owner.fetchval(EVERYTHING)
    async with changed(owner, change, undo):
        await until_seen(api, f"{prefix}agent_sessions", signed_in(project))
        for headers in (signed_in(project), [("apikey", project["SUPABASE_PUBLISHABLE_KEY"])]):
            for attempt in through_tables(prefix):
                assert await refused(api, attempt, headers) == "42501", attempt
                assert await owner.fetchval(EVERYTHING) == before, attempt


@pytest.mark.usefixtures("diary")
async def test_a_permissive_policy_that_is_added_opens_nothing(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    change, undo, _ = ADDED["permissive policies for everybody"]
    key = [(HEADER, project["SUPABASE_SERVER_KEY"])]
    async with changed(owner, change, undo):
        for headers in (signed_in(project), [*signed_in(project), *key]):
            assert (await api.get(f"agent_sessions?user_id=eq.{BOB}", headers=headers)).json() == []
            assert (await api.get(f"agent_session_info?user_id=eq.{BOB}", headers=headers)).json() == []
            assert len((await api.get("agent_sessions", headers=headers)).json()) == 3
        # Not even together with the server's key: the user is the token's.
        item = {"user_id": BOB, "session_id": "private", "content": "forged"}
        outcome = await refused(api, Attempt("", "POST", "agent_sessions", item), [*signed_in(project), *key])
        assert outcome == "42501"
        async with changed(
            owner, "GRANT SELECT ON agent_sessions TO anon", "REVOKE SELECT ON agent_sessions FROM anon"
        ):
            stranger = [("apikey", project["SUPABASE_PUBLISHABLE_KEY"])]
            assert (await api.get("agent_sessions", headers=stranger)).json() == []


@pytest.mark.usefixtures("diary")
async def test_a_function_with_the_owners_rights_changes_nothing_either(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    body = "$$ BEGIN UPDATE public.agent_sessions SET content = 'forged'; END $$"
    create = f"CREATE FUNCTION helper() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS {body}"
    async with changed(owner, create, "DROP FUNCTION helper()"), asyncio.timeout(20):
        call = Attempt("", "POST", "rpc/helper", {})
        while (outcome := await refused(api, call, signed_in(project))) == "PGRST202":  # noqa: ASYNC110 - not noticed yet
            await asyncio.sleep(0.05)
        assert outcome == "42501"
    assert await owner.fetchval("SELECT count(*) FROM agent_sessions WHERE content = 'forged'") == 0


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE agent_sessions",
        "COPY agent_session_canary (user_id, text) FROM STDIN",
        "INSERT INTO agent_session_info (user_id, session_id) VALUES ('x', 'x')",
        "DELETE FROM agent_session_batches",
    ],
)
async def test_a_connection_that_acts_for_a_signed_in_user_needs_the_key_too(
    project: Environment, owner: asyncpg.Connection, statement: str
) -> None:
    """As tools do it that go past the API: `set role authenticated` on a connection of the owner."""
    tables = "agent_sessions, agent_session_info, agent_session_canary, agent_session_batches"
    everything = owner.transaction()
    await everything.start()
    await owner.execute(f"GRANT ALL ON {tables} TO authenticated")
    for key in ("", "planted"):

        async def act(key: str = key) -> None:
            async with owner.transaction():
                await owner.execute("SELECT set_config('request.headers', $1, true)", json.dumps({HEADER: key}))
                await owner.execute("SET LOCAL ROLE authenticated")
                await owner.execute(statement)

        # PostgreSQL itself lets nobody copy into a table with row-level security.
        with pytest.raises(asyncpg.PostgresError, match=r"needs the server key|COPY FROM not supported"):
            await act()
    await owner.execute(
        "SELECT set_config('request.headers', $1, true)", json.dumps({HEADER: project["SUPABASE_SERVER_KEY"]})
    )
    await owner.execute("SET LOCAL ROLE authenticated")
    await owner.execute("SELECT agent_session_require_server()")
    await everything.rollback()


async def test_a_role_of_a_token_that_is_not_supabases_needs_the_key(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    role = (
        "CREATE ROLE editor NOLOGIN BYPASSRLS; GRANT editor TO authenticator; "
        "GRANT ALL ON agent_session_info TO editor; GRANT USAGE ON SCHEMA public, auth TO editor; "
        "GRANT EXECUTE ON FUNCTION agent_session_is_server TO editor"
    )
    async with changed(owner, role, "DROP OWNED BY editor; DROP ROLE editor"):
        headers = [("apikey", project["SUPABASE_PUBLISHABLE_KEY"])]
        headers += [("Authorization", f"Bearer {token(project, ALICE, role='editor')}")]
        attempt = Attempt("", "POST", "agent_session_info", {**MINE, "session_id": "forged"})
        assert await refused(api, attempt, headers) == "42501"
    assert await owner.fetchval("SELECT count(*) FROM agent_session_info") == 0


@pytest.mark.usefixtures("diary")
async def test_a_signed_in_user_reads_what_is_theirs_and_nothing_else(
    project: Environment, api: httpx.AsyncClient
) -> None:
    headers = signed_in(project)
    assert [row["content"] for row in (await api.get("agent_sessions?order=id", headers=headers)).json()] == WORDS
    assert [row["title"] for row in (await api.get("agent_session_info", headers=headers)).json()] == ["title"]
    tail = await api.post("rpc/agent_session_tail", json={**NAMED, "p_limit": None}, headers=headers)
    assert tail.json() == WORDS[::-1]
    for table in ("batches", "leases", "turns"):
        assert (await api.get(f"agent_session_{table}", headers=headers)).json() == []
    turns = await api.post("rpc/agent_session_turns", json={**NAMED, "p_turn_id": None, "p_limit": 1}, headers=headers)
    assert turns.json() == []
    assert (await api.post("rpc/agent_session_is_server", json={}, headers=headers)).json() is False
    keys = await api.get("agent_session_server_keys", headers=headers)
    assert keys.json()["code"] == "42501"
    secret = [("apikey", project["SUPABASE_KEY"])]
    assert (await api.get("agent_session_server_keys", headers=secret)).json()["code"] == "42501"
    more = {"p_sha256": "0" * 64}
    for who in (headers, secret):
        assert (await api.post("rpc/agent_session_add_server_key", json=more, headers=who)).json()["code"] == "42501"


# ── With the key ────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("diary")
async def test_the_servers_key_does_not_lead_across_users(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    before = await owner.fetchval(EVERYTHING)
    bob = [*signed_in(project, BOB), (HEADER, project["SUPABASE_SERVER_KEY"])]
    for attempt in [*through_tables(), *through_functions()]:
        answer = await api.request(attempt.method, attempt.path, json=attempt.body, headers=bob)
        nothing = answer.text.strip() in ("", "null", "[]", "0", "false")
        # An empty replacement of nothing is remembered for Alice: that is refused by the policy as well.
        assert answer.status_code >= 400 or nothing, (attempt, answer.text)
        assert await owner.fetchval(EVERYTHING) == before, (attempt, answer.text)


async def test_with_the_servers_key_everything_of_ones_own_can_be_done(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    headers = [*signed_in(project), (HEADER, project["SUPABASE_SERVER_KEY"])]
    done = []
    for attempt in through_functions():
        if "prune" in attempt.name or "GET" in attempt.name:
            continue
        answer = await api.request(attempt.method, attempt.path, json=attempt.body, headers=headers)
        done.append(answer.status_code)
    assert set(done) <= {200, 204}


@pytest.mark.parametrize("way", ["table", "function"])
async def test_the_database_takes_no_item_of_40_mb_from_a_signed_in_user(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection, way: str
) -> None:
    headers = [*signed_in(project), (HEADER, project["SUPABASE_SERVER_KEY"])]
    batch = {"p_batch_id": str(uuid4()), "p_roles": [None], "p_title": None}
    for size, fits in ((40_000_000, False), (24 * 2**20 + 1, False), (24 * 2**20, True)):
        attempts = {
            "table": Attempt("", "POST", "agent_sessions", {**MINE, "content": "x" * size}, "return=minimal"),
            "function": Attempt("", "POST", "rpc/agent_session_append", {**NAMED, **batch, "p_contents": ["x" * size]}),
        }
        outcome = await refused(api, attempts[way], headers)
        assert outcome.startswith("done") if fits else outcome == "42501"
        assert await owner.fetchval("SELECT count(*) FROM agent_sessions") == int(fits)


# ── What holds the promise ──────────────────────────────────────────────────


async def test_every_function_that_changes_something_asks_for_the_server_first(project: Environment) -> None:
    """So that nothing to change is an error as well, and not an empty success."""
    first = (
        r"\nbegin\n  (if p_kept is not null or p_text is not null then\n    )?"
        r"perform public\.agent_session_require_server\(\);"
    )
    query = r"""
        SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'agent\_session%' AND provolatile = 'v'
          AND prosrc !~ $1
    """
    assert await ask(project, query, first) == [
        "agent_session_add_server_key",  # of the owner alone
        "agent_session_batch_of_older_program",  # a trigger, after the one that asks
        "agent_session_require_server",
    ]


async def test_what_an_older_program_is_told_says_what_to_do(project: Environment, api: httpx.AsyncClient) -> None:
    """Version 0.1.0 shows the message, and not the hint."""
    answer = await api.post("rpc/agent_session_pop", json=NAMED, headers=signed_in(project))
    assert answer.status_code == 403
    assert answer.json()["code"] == "42501"
    for word in ("update the app", "db server-key", "SUPABASE_SERVER_KEY"):
        assert word in answer.json()["message"]
