"""The commands around keys, what the doctor says of them, and the key of development."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from my_agent import app
from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.encryption.cipher import KEYS, new_key
from my_agent.sessions.errors import COMMAND
from my_agent.sessions.records import Batch, Row
from my_agent.settings import Settings
from proof.encryption.test_encryption import inner_of, sealed, settings_with, with_keys
from proof.support.command import Done, Terminal, invoke
from proof.support.helpers import texts, user

KEY = SessionRef("", "s")
OLD, NEW = new_key(), new_key()


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the keys of the commands."""

    def set_keys(*keys: str, plain: bool = False) -> None:
        monkeypatch.setenv(KEYS, ",".join(keys))
        monkeypatch.setenv("SESSION_ENCRYPTION_ALLOW_PLAINTEXT", str(plain))

    return set_keys


Keys = Callable[..., None]


async def succeeded(*arguments: str) -> Done:
    done = await invoke(*arguments)
    assert done.code == 0, done
    return done


# ── Commands ────────────────────────────────────────────────────────────────


async def test_a_new_key_is_printed_and_is_another_each_time() -> None:
    printed = [(await succeeded("sessions", "new-key")).out.strip() for _ in range(2)]
    assert len({settings_with(key).cipher.names[0] for key in printed}) == 2


async def test_a_rotation_step_by_step(store: SessionStore, keys: Keys) -> None:
    keys(OLD)
    await succeeded("chat", "My name is Ada", "-s", "s")
    keys(NEW, OLD)
    assert "Ada" in (await succeeded("chat", "What is my name?", "-s", "s")).out
    done = await succeeded("sessions", "reencrypt")
    assert done.err == "1 session: 1 session encrypted, 2 items.\n"
    assert (await succeeded("sessions", "reencrypt")).err == "1 session: 0 sessions encrypted, 0 items.\n"
    keys(NEW)
    assert "Ada" in (await succeeded("chat", "What is my name?", "-s", "s")).out
    keys(OLD)
    done = await invoke("chat", "What is my name?", "-s", "s")
    assert done.code == 1
    assert f"encrypted with key {settings_with(NEW).cipher.names[0]}" in done.err


async def test_encryption_is_turned_on_and_off_by_commands(store: SessionStore, keys: Keys) -> None:
    inner = inner_of(store)
    rows = ['{"role":"user","content":"x"}', '{ "a" : 1 }']
    await inner.append(KEY, Batch.of([Row(row) for row in rows], title="T"))
    keys(NEW)
    refused = await invoke("sessions", "list")
    assert refused.code == 1
    assert f"`{COMMAND} sessions reencrypt`" in refused.err
    keys(NEW, plain=True)
    assert "T" in (await succeeded("sessions", "list")).out
    keys(NEW)
    await succeeded("sessions", "reencrypt")
    assert all(row.startswith("sealed:") for row in await inner.tail(KEY, None))
    assert "T" in (await succeeded("sessions", "list")).out
    done = await succeeded("sessions", "reencrypt", "--decrypt")
    assert done.err == "1 session: 1 session decrypted, 2 items.\n"
    assert await inner.tail(KEY, None) == rows


async def test_texts_that_open_with_no_key_are_complained_of(store: SessionStore, keys: Keys) -> None:
    keys(NEW)
    await with_keys(store, NEW).append(KEY, Batch.of([Row("{}")]))
    await inner_of(store).append(KEY, Batch.of([Row(sealed("{}", KEY))]))
    done = await invoke("sessions", "reencrypt")
    assert done.code == 1
    assert done.err.endswith("Error: Left as it is, because none of the keys opens it: 1 text.\n")


async def test_at_a_terminal_progress_is_shown(store: SessionStore) -> None:
    await store.session("s").add_items([user("x")])
    with Terminal("sessions", "reencrypt") as terminal:
        terminal.wait_for("Encrypting")
        assert terminal.end() == 0


async def test_an_export_is_in_plain_text_and_can_be_imported_under_another_key(
    store: SessionStore, keys: Keys, tmp_path: Path
) -> None:
    keys(OLD)
    old = with_keys(store, OLD)
    await old.session("s").add_items([user("x")])
    exported = await succeeded("sessions", "export", str(tmp_path / "all.jsonl"))
    told = exported.err.splitlines()
    assert told[-1] == "What is stored is encrypted, and the export is plain text: guard it as you guard the keys."
    await old.delete_session(KEY)
    assert await old.canary(await old.canary(), None) is None
    keys(NEW)
    await succeeded("sessions", "import", str(tmp_path / "all.jsonl"))
    assert texts(await with_keys(store, NEW).session("s").get_items()) == ["x"]


# ── The doctor ──────────────────────────────────────────────────────────────


async def said(code: int = 0) -> tuple[str, str]:
    """How the doctor finds the keys: state, and what it says and advises."""
    done = await invoke("doctor", "--json")
    assert done.code == code, done
    (check,) = [check for check in json.loads(done.out)["checks"] if check["name"] == "encryption"]
    return check["state"], f"{check['says']} {check['todo']}"


async def test_the_doctor_knows_the_keys(store: SessionStore, keys: Keys) -> None:
    old, new = settings_with(OLD, NEW).cipher.names
    keys(OLD)
    assert await said() == ("ok", f"Sessions are encrypted with key {old}. ")
    keys(NEW, OLD)
    state, words = await said()
    assert state == "warn"
    assert "sessions reencrypt" in words
    await succeeded("sessions", "reencrypt")
    state, words = await said()
    assert state == "ok"
    assert f"{old} can go" in words
    keys(NEW, plain=True)
    state, words = await said()
    assert state == "warn"
    assert "SESSION_ENCRYPTION_ALLOW_PLAINTEXT" in words
    keys(OLD)
    state, words = await said(code=1)
    assert state == "fail"
    assert words.startswith("The keys are not those of the stored sessions. ")
    assert f"key {new}, which SESSION_ENCRYPTION_KEYS does not hold" in words
    keys()
    assert (await said(code=1))[1].startswith("No key is set. SESSION_ENCRYPTION_KEYS is not set. ")
    keys("planted")
    assert (await said(code=1))[1].startswith("A key cannot be used. Key 1 of 1 in ")


async def test_the_doctor_knows_what_is_not_encrypted_yet(store: SessionStore, keys: Keys) -> None:
    await inner_of(store).append(KEY, Batch.of([Row("{}")], title="T"))
    keys(NEW)
    state, words = await said(code=1)
    assert state == "fail"
    assert words.startswith("What is stored is not encrypted yet. There are sessions that are not encrypted. Run ")


# ── Development ─────────────────────────────────────────────────────────────


@pytest.fixture
def new_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without any setting, but that it may use the embedded server."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DEV_SERVER", "1")
    monkeypatch.setattr(app, "PROJECT", tmp_path / "nowhere")
    return tmp_path


def test_development_has_a_key_of_its_own(new_project: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    for _ in range(2):
        with app.server(Settings()) as settings:
            seen.append(settings.cipher.names)
    file = new_project / ".dev/encryption.key"
    assert seen == [settings_with(file.read_text()).cipher.names] * 2
    assert file.stat().st_mode & 0o077 == 0
    assert f"{KEYS} is not set: using a key made up in {file} (development only)." in caplog.messages


def test_a_key_that_is_set_is_used_in_development_too(new_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, OLD)
    with app.server(Settings()) as settings:
        assert settings.cipher.names == settings_with(OLD).cipher.names
    assert not (new_project / ".dev/encryption.key").exists()


def test_a_key_is_made_up_once_however_many_ask(tmp_path: Path) -> None:
    file = tmp_path / "encryption.key"
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: app._made_up_key(file), range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_no_key_is_made_up_outside_of_development(new_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEV_SERVER")
    with app.server(Settings()) as settings:
        assert settings.session_encryption_keys is None
    assert not (new_project / ".dev").exists()
