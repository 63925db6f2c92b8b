"""Attacks: strangers and other users try every table and every function, with tokens real, forged and none.

`pytest -s proof/supabase/test_security.py` prints the table of attempts and outcomes.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from my_agent.dev.supabase import sign
from my_agent.sessions import (
    SessionRef,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    SupabaseSession,
    SupabaseStore,
    WrongOwner,
)
from my_agent.sessions.contract import admit_all
from my_agent.sessions.layers import wrap_store
from my_agent.sessions.records import Batch, Content, Row, Turn
from proof.supabase.fixtures import Environment, ask, settings_for, token
from proof.support.helpers import texts, user

ALICE, BOB = "a11ce000-0000-4000-8000-000000000001", "b0b00000-0000-4000-8000-000000000002"
VICTIM = SessionRef(ALICE, "diary")
SECRET = "planted"

Headers = dict[str, str]


# ── Who attacks ─────────────────────────────────────────────────────────────


def _bearer(project: Environment, jwt: str) -> Headers:
    return {"apikey": project["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {jwt}"}


def _by_the_server(project: Environment, jwt: str) -> Headers:
    """As if the server confused its users."""
    return {**_bearer(project, jwt), "x-agent-session-key": project["SUPABASE_SERVER_KEY"]}


def _unsigned(project: Environment, **claims: object) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, {"role": "authenticated", "exp": int(time.time()) + 3600, **claims})
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def _forged(project: Environment, **claims: object) -> str:
    later = int(time.time()) + 3600
    return sign({"exp": later, "role": "authenticated", "sub": ALICE, **claims}, "another secret " * 4)


def _other_algorithm(project: Environment) -> str:
    _, claims, signature = token(project, ALICE).split(".")
    other = urlsafe_b64encode(json.dumps({"alg": "RS256", "typ": "JWT"}).encode()).rstrip(b"=").decode()
    return f"{other}.{claims}.{signature}"


ATTACKERS: dict[str, Callable[[Environment], Headers]] = {
    "another signed-in user": lambda p: _bearer(p, token(p, BOB)),
    "another user's token, sent by the server": lambda p: _by_the_server(p, token(p, BOB)),
    "a token without an id, sent by the server": lambda p: _by_the_server(p, token(p, None)),
    "a token with an empty id, sent by the server": lambda p: _by_the_server(p, token(p, "")),
    "a token whose id is no UUID, sent by the server": lambda p: _by_the_server(p, token(p, "%")),
    "the publishable key alone": lambda p: {"apikey": p["SUPABASE_PUBLISHABLE_KEY"]},
    "no key": lambda p: {},
    "a made-up key": lambda p: {"apikey": "sb_secret_planted"},
    "no key, but the victim's token": lambda p: {"Authorization": f"Bearer {token(p, ALICE)}"},
    "the victim's token, signed with another secret": lambda p: _bearer(p, _forged(p)),
    "the secret key's token, signed with another secret": lambda p: _bearer(p, _forged(p, role="service_role")),
    "the victim's token, expired": lambda p: _bearer(p, token(p, ALICE, exp=int(time.time()) - 3600)),
    "the victim's token, not valid yet": lambda p: _bearer(p, token(p, ALICE, nbf=int(time.time()) + 3600)),
    "the victim's token without a signature (alg=none)": lambda p: _bearer(p, _unsigned(p, sub=ALICE)),
    "the secret key's token without a signature": lambda p: _bearer(p, _unsigned(p, role="service_role")),
    "the victim's token with another algorithm": lambda p: _bearer(p, _other_algorithm(p)),
    "a role that does not exist": lambda p: _bearer(p, token(p, ALICE, role="nobody_here")),
    "a role that the API may not take": lambda p: _bearer(p, token(p, ALICE, role="postgres")),
}

PUBLIC = {
    "agent_session_schema_version",
    "agent_session_open",
    "agent_session_is_server",
    "agent_session_canary_of_others",
}
"""Functions whose answer says nothing of anybody's sessions."""
SIGNED_IN = list(ATTACKERS)[:5]
"""They may look, and find nothing."""


# ── What is attacked: all that is there ─────────────────────────────────────

TABLES = """
SELECT array_agg(relname::text ORDER BY relname) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND relname LIKE 'agent\\_session%'
"""
FUNCTIONS = """
SELECT json_object_agg(proname, coalesce(proargnames, '{}')) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'agent\\_session%' AND prorettype <> 'trigger'::regtype
"""
EVERYTHING = """
SELECT (SELECT coalesce(json_agg(item ORDER BY id), '[]') FROM agent_sessions AS item)::text
    || (SELECT coalesce(json_agg(info ORDER BY session_id), '[]') FROM agent_session_info AS info)::text
    || (SELECT coalesce(json_agg(batch ORDER BY batch_id), '[]') FROM agent_session_batches AS batch)::text
    || (SELECT coalesce(json_agg(canary ORDER BY user_id), '[]') FROM agent_session_canary AS canary)::text
    || (SELECT coalesce(json_agg(lease ORDER BY session_id), '[]') FROM agent_session_leases AS lease)::text
    || (SELECT coalesce(json_agg(turn ORDER BY id), '[]') FROM agent_session_turns AS turn)::text
    || (SELECT coalesce(json_agg(key ORDER BY sha256), '[]') FROM agent_session_server_keys AS key)::text
"""
THEIRS = "SELECT json_agg(item ORDER BY id) FROM agent_sessions AS item WHERE user_id = $1"
# Whatever anybody but the owner was granted, by name or as one of the public.
RIGHTS = """
SELECT array_agg(DISTINCT format('%s may %s %s', coalesce(rolname, 'public'), lower(privilege_type), name))
FROM (
  SELECT relname, relowner, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i' AND relname LIKE 'agent\\_session%'
  UNION ALL
  SELECT proname, proowner, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'agent\\_session%'
) AS thing (name, owner, acl), aclexplode(acl) LEFT JOIN pg_roles ON pg_roles.oid = grantee
WHERE grantee <> owner
"""
VICTIMS_BATCH = f"SELECT batch_id::text FROM agent_session_batches WHERE user_id = '{ALICE}' LIMIT 1"
EVIL = '{"role":"user","content":"evil"}'
LEASE = "01940000-0000-7000-8000-000000000000"
"""The one that the victim's session has. Attackers know it."""


class Attempt(NamedTuple):
    """One request."""

    name: str
    method: str
    path: str
    body: object = None
    headers: Headers = {}  # noqa: RUF012 - never changed


def attempts(tables: list[str], functions: dict[str, list[str]], batch_id: str) -> Iterator[Attempt]:
    """Every way to reach somebody's data through the API."""
    for table in tables:
        row: dict[str, object] = {"user_id": ALICE, "session_id": VICTIM.session_id}
        item = row | ({"content": EVIL} if table == "agent_sessions" else {})
        if table == "agent_session_canary":
            item = {"user_id": ALICE, "text": EVIL}
        if table == "agent_session_batches":
            item = row | {"batch_id": batch_id}
        if table == "agent_session_leases":
            item = row | {"token": batch_id, "until": "2100-01-01", "began": False}
        if table == "agent_session_turns":
            item = row | {"turn_id": "t", "status": "done", "content": EVIL}
        if table == "agent_session_server_keys":
            item = {"sha256": "0" * 64}
        merge = {"Prefer": "resolution=merge-duplicates,return=representation"}
        theirs = f"{table}?user_id=eq.{ALICE}"
        yield Attempt(f"read {table}", "GET", table)
        yield Attempt(f"read the victim's {table}", "GET", f"{theirs}&select=*")
        yield Attempt(f"count {table}", "GET", f"{table}?select=count")
        yield Attempt(f"insert into {table}", "POST", table, item)
        yield Attempt(f"insert into {table} without an owner", "POST", table, {**item, "user_id": ""})
        yield Attempt(f"overwrite {table}", "POST", table, item, merge)
        yield Attempt(f"change {table}", "PATCH", theirs, {"session_id": "stolen"}, merge)
        yield Attempt(f"take over {table}", "PATCH", theirs, {"user_id": BOB}, merge)
        yield Attempt(f"delete {table}", "DELETE", theirs, None, merge)
    # A new argument must be added here: how would an attacker fill it?
    arguments: dict[str, list[object]] = {
        "p_user_id": [ALICE],
        "p_session_id": [VICTIM.session_id],
        "p_batch_id": [str(uuid4()), batch_id],
        "p_contents": [[EVIL]],
        "p_roles": [["user"]],
        "p_title": ["evil"],
        "p_limit": [1000],
        "p_expected": [None, [], [SECRET]],
        "p_metadata": [{"evil": True}],
        "p_before": [None],
        "p_before_user_id": [None],
        "p_before_session_id": [None],
        "p_kept": [None, SECRET],
        "p_text": [None, "evil"],
        "p_first": [0],
        "p_after": [None],
        "p_skip": [0],
        "p_expected_title": [None, f"{SECRET} title"],
        "p_expected_metadata": [{}, {"note": SECRET}],
        "p_older_than": ["2999-01-01T00:00:00Z"],
        "p_sha256": ["0" * 64],
        "p_token": [None, str(uuid4()), LEASE],
        "p_lease": [None, LEASE],
        "p_seconds": [60],
        "p_release": [True],
        "p_request_id": ["request"],
        "p_turn_id": [None, "turn"],
        "p_status": ["done"],
        "p_content": [EVIL],
        "p_expected_status": ["paused"],
        "p_expected_content": [SECRET],
        "p_new_session_id": ["copy"],
    }
    for function, names in functions.items():
        variants: list[dict[str, object]] = [{}]
        for name in names:
            variants = [{**variant, name: value} for variant in variants for value in arguments[name]]
        if function == "agent_session_list":
            variants.append({**variants[0], "p_user_id": None})
        for variant in variants:
            yield Attempt(f"call {function}", "POST", f"rpc/{function}", variant)
            yield Attempt(f"call {function} by GET", "GET", f"rpc/{function}?{httpx.QueryParams(_texts(variant))}")


def _texts(variant: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in variant.items() if isinstance(value, str | int)}


@pytest.fixture
async def api(project: Environment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{project['SUPABASE_URL']}/rest/v1/", timeout=10) as client:
        yield client


@pytest.fixture
async def owner(project: Environment) -> AsyncIterator[asyncpg.Connection]:
    """A connection that sees everything."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    yield connection
    await connection.close()


@pytest.fixture
async def diary(project: Environment, store: SupabaseStore) -> None:
    """What the victim has stored."""
    rows = [Row(json.dumps({"role": "user", "content": f"{SECRET} {number}"}), "user") for number in range(3)]
    await store.append(VICTIM, Batch.of(rows, title=f"{SECRET} title"))
    await store.update_session(VICTIM, metadata={"note": SECRET})
    assert await store.lease(VICTIM, UUID(LEASE), 600) is not None
    turn = Turn("turn", "paused", SECRET, "request")
    await store.append(VICTIM, Batch.of([])._replace(lease=UUID(LEASE), turn=turn))
    await store.append(SessionRef("", "of nobody"), Batch.of(rows, title=f"{SECRET} title"))
    # The app's canary the server may read in the name of any user.
    await ask(project, "INSERT INTO agent_session_canary VALUES ('', 'of the app'), ($1, $2)", ALICE, SECRET)


# ── The attacks ─────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize("attacker", ATTACKERS)
async def test_nobody_reaches_what_is_anothers(
    project: Environment, api: httpx.AsyncClient, owner: asyncpg.Connection, attacker: str
) -> None:
    headers = ATTACKERS[attacker](project)
    before = await owner.fetchval(EVERYTHING)
    functions = json.loads(await owner.fetchval(FUNCTIONS))
    assert {"agent_session_append", "agent_session_prune", "agent_session_exposure"} <= functions.keys()
    outcomes: Counter[str] = Counter()
    tables, batch_id = await owner.fetchval(TABLES), await owner.fetchval(VICTIMS_BATCH)
    for attempt in attempts(tables, functions, batch_id):
        headers_now = {**headers, **attempt.headers}
        answer = await api.request(attempt.method, attempt.path, json=attempt.body, headers=headers_now)
        assert SECRET not in answer.text, (attempt, answer.text)
        # Not even a number tells that there is something.
        nothing = answer.text.strip() in ("", "null", "[]", "0", "false", '[{"count":0}]')
        public = attempt.name.split()[1] in PUBLIC
        assert answer.status_code >= 400 or nothing or public, (attempt, answer.text)
        assert await owner.fetchval(EVERYTHING) == before, (attempt, answer.text)
        if answer.status_code < 400:
            assert attacker in SIGNED_IN, f"a stranger was let in: {attempt} {answer.text}"
            outcomes["empty"] += 1
        else:
            outcomes[f"{answer.status_code} {answer.json().get('code') or ''}".strip()] += 1
    table = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common())
    print(f"\n{attacker}: {table}")  # noqa: T201
    assert sum(outcomes.values()) > 40


@pytest.mark.usefixtures("diary")
async def test_another_users_batch_id_is_of_no_use(project: Environment) -> None:
    before = json.loads(await ask(project, THEIRS, ALICE))
    await ask(project, "DELETE FROM agent_session_canary")  # or the store would not open
    bob = SupabaseStore(settings_for(project), access_token=token(project, BOB))
    batch_id = await ask(project, VICTIMS_BATCH)
    await bob.append(SessionRef(BOB, "mine"), Batch(batch_id, [Row("{}")]))
    assert await bob.tail(SessionRef(BOB, "mine"), None) == ["{}"]  # a batch is known in its session alone
    await bob.close()
    assert json.loads(await ask(project, THEIRS, ALICE)) == before


async def test_a_signed_in_user_can_do_everything_with_their_own(project: Environment) -> None:
    settings = settings_for(project)
    for number in range(3):
        session = SupabaseSession(f"s{number}", access_token=token(project, ALICE), settings=settings)
        assert session.user_id == ALICE
        await session.add_items([user("a"), user("b"), user("c")])
        popped = await session.pop_item()
        assert popped is not None
        assert texts(await session.get_items()) == ["a", "b"]
        await session.close()
    store = wrap_store(SupabaseStore(settings, access_token=token(project, ALICE)))
    ref = SessionRef(ALICE, "s0")
    assert await store.replace_tail(ref, None, Batch.of([Row("{}")]))
    assert await store.update_session(ref, title="t", metadata={"m": 1})
    found = await store.find_session(ref)
    assert found is not None
    assert (found.title, found.metadata, found.item_count) == ("t", {"m": 1}, 1)
    assert len((await store.list_sessions()).sessions) == 3
    assert await store.rewrite(ref, Content("t", {"m": 1}, ["{}"]), Content("T", {}, ["{}"]))
    await store.clear(ref)
    assert await store.delete_session(ref)
    assert await store.delete_user(ALICE) == 2
    await store.close()


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize(
    ("key", "kind", "words"),
    [
        (None, SettingMissing, "SUPABASE_SERVER_KEY is not set. Run `.* db server-key`, which makes one"),
        (SecretStr("x" * 43), StoreRefused, "does not know the one in SUPABASE_SERVER_KEY"),
    ],
)
async def test_a_signed_in_user_reads_and_changes_nothing_without_the_server(
    project: Environment, key: SecretStr | None, kind: type[SessionStoreError], words: str
) -> None:
    await ask(project, "DELETE FROM agent_session_canary")  # or the stores would not open
    before = await ask(project, EVERYTHING)
    alice = SupabaseStore(settings_for(project, supabase_server_key=key), access_token=token(project, ALICE))
    assert len(await alice.tail(VICTIM, None)) == 3
    assert [info.title for info in (await alice.list_sessions()).sessions] == [f"{SECRET} title"]
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: alice.append(VICTIM, Batch.of([Row(EVIL)])),
        lambda: alice.pop(VICTIM),
        lambda: alice.pop_object(VICTIM),
        lambda: alice.take(VICTIM, ["anything"]),
        lambda: alice.clear(VICTIM),
        lambda: alice.replace_tail(VICTIM, None, Batch.of([Row(EVIL)])),
        lambda: alice.update_session(VICTIM, title="evil"),
        lambda: alice.delete_session(VICTIM),
        lambda: alice.delete_user(ALICE),
        lambda: alice.canary(None, "evil"),
    ]
    for change in changes:
        with pytest.raises(kind, match=words):
            await change()
    await alice.close()
    assert await ask(project, EVERYTHING) == before


async def test_a_signed_in_user_has_a_canary_until_the_servers_changes(project: Environment) -> None:
    settings = settings_for(project)
    store, everybodys = SupabaseStore(settings, access_token=token(project, ALICE)), SupabaseStore(settings)
    for each in (store, everybodys):
        each.guard(admit_all)
    assert await store.canary(None, "mine") == "mine"
    assert await everybodys.canary() is None
    assert await everybodys.canary(None, "the server's") == "the server's"
    assert await store.canary() == "mine"
    # When the server's changes, the users' are made anew.
    assert await everybodys.canary("the server's", "new") == "new"
    assert await store.canary() is None
    await everybodys.close()
    await store.close()


@pytest.mark.usefixtures("diary")
async def test_a_signed_in_user_sees_only_their_own(project: Environment) -> None:
    await ask(project, "DELETE FROM agent_session_canary")  # or the store would not open
    bob = SupabaseStore(settings_for(project), access_token=token(project, BOB))
    await bob.session("diary").add_items([user("mine")])
    assert [(info.user_id, info.session_id) for info in (await bob.list_sessions()).sessions] == [(BOB, "diary")]
    with pytest.raises(WrongOwner):
        bob.session("diary", user_id=ALICE)
    with pytest.raises(SessionStoreError):
        await bob.append(VICTIM, Batch.of([Row(EVIL)]))
    assert await bob.tail(VICTIM, None) == []
    assert await bob.pop(VICTIM) is None
    await bob.close()


@pytest.mark.usefixtures("diary")
async def test_the_secret_key_acts_for_any_user_it_names(store: SupabaseStore) -> None:
    assert len(await store.tail(VICTIM, None)) == 3
    await store.session("diary", user_id=BOB).add_items([user("mine")])
    assert await store.delete_user(BOB) == 1
    assert len((await store.list_sessions()).sessions) == 2


async def test_nothing_is_open_to_strangers(project: Environment) -> None:
    assert await ask(project, "SELECT agent_session_exposure()") == []
    await ask(project, "GRANT SELECT ON agent_sessions TO anon")
    await ask(project, "ALTER TABLE agent_session_info DISABLE ROW LEVEL SECURITY")
    try:
        exposed = await ask(project, "SELECT agent_session_exposure()")
    finally:
        await ask(project, "REVOKE SELECT ON agent_sessions FROM anon")
        await ask(project, "ALTER TABLE agent_session_info ENABLE ROW LEVEL SECURITY")
    assert exposed == ["anon may use table agent_sessions", "table agent_session_info has no row-level security"]


async def test_each_role_has_the_rights_it_needs_and_no_other(project: Environment) -> None:
    of_the_server = {"agent_session_prune", "agent_session_exposure"}
    of_nobody = {"agent_session_add_server_key", "agent_session_batch_of_older_program", "agent_session_guard"}
    functions = json.loads(await ask(project, FUNCTIONS)).keys() - of_nobody
    needed = set()
    for role in ("authenticated", "service_role"):
        whole = ("info", "canary", "leases", "turns")
        for table in ("agent_sessions", *(f"agent_session_{name}" for name in whole)):
            needed |= {f"{role} may {what} {table}" for what in ("select", "insert", "update", "delete")}
        needed |= {f"{role} may {what} agent_session_batches" for what in ("select", "insert", "delete")}
        allowed = functions if role == "service_role" else functions - of_the_server
        needed |= {f"{role} may execute {function}" for function in allowed}
    assert set(await ask(project, RIGHTS)) == needed


async def test_what_the_database_planned_for_the_secret_key_serves_nobody_else(
    project: Environment, api: httpx.AsyncClient
) -> None:
    # The sixth call on a connection may use a plan that is kept; what it has computed already, it no longer checks.
    functions = json.loads(await ask(project, FUNCTIONS))
    secret = {"apikey": project["SUPABASE_KEY"]}
    publishable = {"apikey": project["SUPABASE_PUBLISHABLE_KEY"]}
    signed_in = _bearer(project, token(project, BOB))
    for attempt in attempts([], functions, str(uuid4())):
        if attempt.method == "POST":
            for _ in range(8):
                await api.post(attempt.path, json=attempt.body, headers=secret)
            stranger = await api.post(attempt.path, json=attempt.body, headers=publishable)
            assert stranger.status_code == 401, (attempt, stranger.text)
            if attempt.name in ("call agent_session_prune", "call agent_session_exposure"):
                answer = await api.post(attempt.path, json=attempt.body, headers=signed_in)
                assert answer.status_code == 403, (attempt, answer.text)
