"""The doctor finds what is wrong, says what to do, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from my_agent.sessions import BackendStore, SessionStore
from my_agent.sessions.backend import ADDRESSES, NAME
from my_agent.sessions.errors import StoreRefused
from proof.support.command import Done, invoke


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def diagnosis(code: int = 0) -> dict[str, Any]:
    """What `doctor --json` finds, by the names of the checks."""
    done = await invoke("doctor", "--json")
    assert done.code == code, done.out
    report = json.loads(done.out)
    assert report["healthy"] is (code == 0)
    return {check["name"]: check for check in report["checks"]}


async def test_all_is_well(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    done: Done = await invoke("doctor")
    assert done.code == 0, done.out
    assert {line.split()[0] for line in done.out.splitlines()} == {"✓"}
    assert "sk-planted" not in done.out
    found = await diagnosis()
    assert [check["name"] for check in found.values() if check["state"] != "ok"] == []
    assert (await store.list_sessions()).sessions == []


async def test_without_a_key_the_offline_model_is_a_warning() -> None:
    check = (await diagnosis())["model"]
    assert (check["state"], check["todo"]) == ("warn", "Put OPENAI_API_KEY into .env.")


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o640, "ok"), (0o644, "warn")])
async def test_a_readable_env_file_is_a_warning(tmp_path: Path, mode: int, state: str) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-planted\n")
    (tmp_path / ".env").chmod(mode)
    assert (await diagnosis())[".env"]["state"] == state
    (tmp_path / ".env").write_text("# OPENAI_API_KEY=planted\nHISTORY_MAX_ITEMS=9\nOPENAI_API_KEY=\n")
    assert (await diagnosis())[".env"]["says"] == ".env contains no secrets."


async def test_variables_that_nothing_reads_are_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "OPENAI_KEY=sk-planted\nOTHER_URL=other://u:planted@h\nHISTORY_MAX_ITEMS=9\nEMPTY=\n"
    )
    check = (await diagnosis())["unread settings"]
    assert (check["state"], "planted" in str(check)) == ("warn", False)
    what = f"OPENAI_KEY, OTHER_URL: set, but not read. This project keeps sessions in {NAME}, at "
    assert check["says"].startswith(what)


async def test_an_address_in_the_environment_is_named_if_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("OTHER_URL", "other://u:planted@h")
    monkeypatch.setenv("PAGE_URL", "https://example.com")
    assert "unread settings" not in await diagnosis()
    for name in ADDRESSES:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DEV_SERVER", "0")
    assert (await diagnosis(code=1))["unread settings"]["says"].startswith("OTHER_URL: set, but not read.")


async def test_settings_that_cannot_be_read_are_the_first_thing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTORY_MAX_ITEMS", "planted")
    found = await diagnosis(code=1)
    assert list(found) == ["settings"]
    assert "HISTORY_MAX_ITEMS" in found["settings"]["todo"]
    assert "planted" not in str(found)


async def test_a_scratch_session_is_removed_when_reading_fails(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> list[str]:
        raise StoreRefused("No reading today.")

    monkeypatch.setattr(BackendStore, "tail", refuse)
    found = await diagnosis(code=1)
    assert found["round trip"]["todo"] == "No reading today."
    assert (await store.list_sessions()).sessions == []


async def test_a_store_that_changes_what_it_keeps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def change(*_: object) -> list[str]:
        return ["{}"]

    monkeypatch.setattr(BackendStore, "tail", change)
    assert (await diagnosis(code=1))["round trip"]["says"] == "What was read is not what was written."
