"""What the doctor finds in a Supabase project, and what it says to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proof.supabase.fixtures import Environment, ask
from proof.support.command import invoke


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def diagnosis(code: int = 0) -> dict[str, Any]:
    """What `doctor --json` finds, by the names of the checks."""
    done = await invoke("doctor", "--json")
    assert done.code == code, done.out
    assert "planted" not in done.out
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


async def test_a_sound_project_is_described() -> None:
    found = await diagnosis()
    assert found["key"]["says"] == "SUPABASE_KEY is a secret key: for servers only."
    assert "answers in" in found["connection"]["says"]
    assert found["schema"]["says"].startswith("The schema fits this program: schema 2")
    assert found["server key"]["says"] == "The database knows the key in SUPABASE_SERVER_KEY."
    assert found["row-level security"]["state"] == "ok"
    assert "(Functions of others were not looked at.)" in found["row-level security"]["says"]


async def test_a_server_key_that_the_database_does_not_know_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_SERVER_KEY", "x" * 43)
    assert "db server-key` to make one that it knows" in (await diagnosis(code=1))["server key"]["todo"]
    monkeypatch.setenv("SUPABASE_SERVER_KEY", "planted")
    assert "is not a server key" in (await diagnosis(code=1))["connection"]["todo"]
    monkeypatch.delenv("SUPABASE_SERVER_KEY")
    assert (await diagnosis())["server key"]["state"] == "ok"


@pytest.mark.parametrize(
    ("name", "value", "check"), [("SUPABASE_URL", "planted", "settings"), ("SUPABASE_KEY", "planted key", "connection")]
)
async def test_a_setting_that_is_none_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str
) -> None:
    monkeypatch.setenv(name, value)
    found = await diagnosis(code=1)
    assert name in found[check]["todo"]
    assert "round trip" not in found


async def test_a_project_that_is_down_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    check = (await diagnosis(code=1))["connection"]
    assert "Cannot reach Supabase at 127.0.0.1:1" in check["todo"]


async def test_a_key_in_the_clear_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "http://nowhere.invalid")
    assert (await diagnosis(code=1))["address"]["state"] == "warn"


async def test_a_wrong_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_KEY", "planted")
    found = await diagnosis(code=1)
    assert "looks like no key of a project" in found["key"]["says"]
    assert "refuses SUPABASE_KEY" in found["connection"]["todo"]


async def test_a_publishable_key_is_told_what_it_is_for(project: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_KEY", project["SUPABASE_PUBLISHABLE_KEY"])
    found = await diagnosis(code=1)
    assert found["key"]["state"] == "warn"
    assert "only signed-in users can store" in found["key"]["says"]
    assert "use the secret key on a server" in found["connection"]["todo"]


async def test_a_missing_schema_is_found(project: Environment) -> None:
    await ask(project, "ALTER FUNCTION agent_session_schema_version RENAME TO hidden")
    await ask(project, "NOTIFY pgrst, 'reload schema'")
    try:
        found = await diagnosis(code=1)
    finally:
        await ask(project, "ALTER FUNCTION hidden RENAME TO agent_session_schema_version")
        await ask(project, "NOTIFY pgrst, 'reload schema'")
    assert found["connection"]["state"] == "ok"
    assert "db upgrade" in found["schema"]["todo"]
    assert "round trip" not in found


async def test_without_the_address_of_the_database_only_upgrades_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPABASE_DB_URL")
    check = (await diagnosis())["schema"]
    assert check["state"] == "ok"
    assert "SUPABASE_DB_URL is not set" in check["says"]


async def test_an_address_of_the_database_that_does_not_work_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_DB_URL", "postgresql://u:planted@127.0.0.1:1/db")
    check = (await diagnosis())["schema"]
    assert check["state"] == "warn"
    assert "127.0.0.1:1/db" in check["todo"]
    assert "SUPABASE_DB_URL" in check["todo"]


async def test_a_changed_migration_is_a_warning(project: Environment) -> None:
    history = "supabase_migrations.schema_migrations"
    await ask(project, f"UPDATE {history} SET statements = array['-- ' || statements[1]]")
    try:
        check = (await diagnosis())["schema"]
    finally:
        await ask(project, f"UPDATE {history} SET statements = array[substr(statements[1], 4)]")
    assert check["state"] == "warn"
    assert "is changed" in check["says"]


async def test_a_schema_that_was_edited_by_hand_is_a_warning(project: Environment) -> None:
    await ask(project, "ALTER INDEX agent_session_info_updated RENAME TO hidden")
    try:
        check = (await diagnosis())["schema"]
    finally:
        await ask(project, "ALTER INDEX hidden RENAME TO agent_session_info_updated")
    assert check["state"] == "warn"
    assert "not what the migrations made: agent_session_info_updated" in check["says"]


async def test_migrations_of_others_do_not_matter(project: Environment) -> None:
    await ask(project, "INSERT INTO supabase_migrations.schema_migrations (version, name) VALUES ('1', 'theirs')")
    try:
        assert (await diagnosis())["schema"]["state"] == "ok"
    finally:
        await ask(project, "DELETE FROM supabase_migrations.schema_migrations WHERE version = '1'")


@pytest.mark.parametrize(
    ("open_it", "close_it", "words"),
    [
        (
            "ALTER TABLE agent_sessions DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE agent_sessions ENABLE ROW LEVEL SECURITY",
            "table agent_sessions has no row-level security",
        ),
        (
            "GRANT SELECT ON agent_session_info TO anon",
            "REVOKE SELECT ON agent_session_info FROM anon",
            "anon may use table agent_session_info",
        ),
        (
            "GRANT EXECUTE ON FUNCTION agent_session_tail TO public",
            "REVOKE EXECUTE ON FUNCTION agent_session_tail FROM public",
            "anon may call function agent_session_tail",
        ),
        (
            "GRANT SELECT (content) ON agent_sessions TO anon",
            "REVOKE SELECT (content) ON agent_sessions FROM anon",
            "anon may use table agent_sessions",
        ),
        (
            "GRANT SELECT ON agent_session_server_keys TO authenticated",
            "REVOKE SELECT ON agent_session_server_keys FROM authenticated",
            "authenticated may use table agent_session_server_keys",
        ),
        (
            "DO 'BEGIN CREATE VIEW recent AS SELECT * FROM agent_sessions; CREATE VIEW newest AS SELECT * FROM recent; "
            "REVOKE ALL ON recent FROM anon, authenticated; END'",
            "DROP VIEW newest, recent",
            "the owners: anon and authenticated may use view public.newest, which passes row-level security.",
        ),
        (
            "CREATE MATERIALIZED VIEW totals AS SELECT * FROM agent_session_info",
            "DROP MATERIALIZED VIEW totals",
            "anon and authenticated may use view public.totals, which passes row-level security",
        ),
        (
            "ALTER POLICY agent_sessions_of_the_user ON agent_sessions "
            "USING (user_id = (SELECT nullif(auth.jwt() ->> 'sub', '')) OR true)",
            "ALTER POLICY agent_sessions_of_the_user ON agent_sessions "
            "USING (user_id = (SELECT nullif(auth.jwt() ->> 'sub', '')))",
            "table agent_sessions has not the policy agent_sessions_of_the_user that the migrations made",
        ),
        (
            "ALTER POLICY agent_session_info_of_the_user ON agent_session_info TO authenticated",
            "ALTER POLICY agent_session_info_of_the_user ON agent_session_info TO public",
            "table agent_session_info has not the policy agent_session_info_of_the_user that the migrations made",
        ),
        (
            "ALTER TABLE agent_session_canary DISABLE TRIGGER agent_session_guard",
            "ALTER TABLE agent_session_canary ENABLE TRIGGER agent_session_guard",
            "table agent_session_canary has not the trigger agent_session_guard that the migrations made",
        ),
    ],
)
async def test_what_is_open_to_strangers_is_found(
    project: Environment, open_it: str, close_it: str, words: str
) -> None:
    await ask(project, open_it)
    try:
        check = (await diagnosis(code=1))["row-level security"]
    finally:
        await ask(project, close_it)
    assert check["state"] == "fail"
    assert words in check["says"]
    assert "enable row level security" in check["todo"]


async def test_what_opens_nothing_is_no_finding(project: Environment) -> None:
    await ask(project, "CREATE POLICY added ON agent_sessions USING (true)")  # beside the restrictive one
    await ask(project, "CREATE VIEW mine WITH (security_invoker = on) AS SELECT * FROM agent_sessions")
    await ask(project, "CREATE VIEW of_the_owner AS SELECT * FROM agent_sessions")
    await ask(project, "REVOKE ALL ON of_the_owner FROM anon, authenticated")
    try:
        check = (await diagnosis())["row-level security"]
    finally:
        await ask(project, "DROP VIEW mine, of_the_owner")
        await ask(project, "DROP POLICY added ON agent_sessions")
    assert check["state"] == "ok"
