"""A signed-in user reads what is theirs; to change it, the server's key is needed as well.

For an agent, history is code: somebody who may write the assistant's words, a system message or a tool's result decides
what the next run does. So these attacks come from the owner of the conversation, who has a token of their own and the
publishable key. `pytest -s` prints the table of attempts and outcomes.
"""

from __future__ import annotations

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

from my_agent.sessions import SessionKey, SupabaseStore
from my_agent.sessions.store import Batch, Row
from tests.supabase_fixtures import Environment, ask, token

ALICE, BOB = "a11ce000-0000-4000-8000-000000000001", "b0b00000-0000-4000-8000-000000000002"
DIARY = SessionKey(ALICE, "diary")
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
    await store.append(SessionKey(BOB, "private"), Batch.of([Row("of Bob")]))
    await owner.execute("INSERT INTO agent_session_canary VALUES ($1, 'canary')", ALICE)


def signed_in(project: Environment, user_id: str = ALICE) -> Headers:
    return [("apikey", project["SUPABASE_PUBLISHABLE_KEY"]), ("Authorization", f"Bearer {token(project, user_id)}")]


async def refused(api: httpx.AsyncClient, attempt: Attempt, headers: Headers) -> str:
    """How an attempt was refused; "done" if it was not."""
    prefer = [] if any(name == "Prefer" for name, _ in headers) else [("Prefer", attempt.prefer)]
    answer = await api.request(attempt.method, attempt.path, json=attempt.body, headers=[*headers, *prefer])
    if answer.status_code < 400:
        return f"done: {answer.text[:60]}"
    return str(answer.json()["code"])


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
