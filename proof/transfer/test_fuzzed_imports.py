"""A damaged export is imported exactly as it reads, or refused in one line, and then nothing of it is stored."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.codec import encode_item
from my_agent.sessions.records import Batch, Row
from my_agent.transfer.sessions import export_sessions
from proof.support.command import invoke
from proof.support.helpers import answer, anything, user

KEPT = SessionRef("keeper", "was here before")
SEEDS = 20
REFUSAL = re.compile(r"Error: (Line \d+ .*|The file ends after line \d+: .*) Nothing was imported\.\n")

Damage = Callable[[random.Random, bytes], bytes]
Sessions = dict[SessionRef, tuple[str | None, object, list[str]]]


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def export(store: SessionStore) -> bytes:
    """What a real store gave away; only the session that was there before is left in it."""
    odd = anything(role="user", content="NUL \0, half a pair \ud83d, 😀 \u2028", number=-0.0, big=2**70)
    for key in (SessionRef("", "s"), SessionRef("ada", "s"), SessionRef("ada", "é\n\x1b[31m")):
        await store.session(key.session_id, user_id=key.user_id).add_items([user("Hi"), answer("Yes?"), odd])
        await store.append(key, Batch.of([Row("not json"), Row("")]))
    metadata = {"z": [1, 0.5, None, {"ä": True}], "a": ""}
    await store.update_session(SessionRef("", "s"), title="Title 😀", metadata=metadata)
    out = io.BytesIO()
    await export_sessions(store, out)
    await start_again(store)
    return out.getvalue()


async def start_again(store: SessionStore) -> None:
    for user_id in {info.user_id for info in (await store.list_sessions(limit=500)).sessions}:
        await store.delete_user(user_id)
    await store.append(KEPT, Batch.of([Row(encode_item(user("kept")))], "Kept"))


async def stored(store: SessionStore) -> Sessions:
    keys = {SessionRef(info.user_id, info.session_id): info for info in (await store.list_sessions(limit=500)).sessions}
    return {key: (info.title, dict(info.metadata), await store.tail(key, None)) for key, info in keys.items()}


def as_it_reads(data: bytes) -> Sessions:
    """The sessions of a file, read in the simplest way."""
    lines = iter(data.split(b"\n"))
    sessions: Sessions = {}
    for line in lines:
        if line:
            header = json.loads(line)
            session = header["session"]
            ref = SessionRef(session["user_id"], session["session_id"])
            assert ref not in sessions
            rows = [json.loads(next(lines))["content"] for _ in range(header["items"])]
            sessions[ref] = (session["title"], session["metadata"], rows)
    return sessions


# ── Ways to damage a file ───────────────────────────────────────────────────


def cut_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def double_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def swap_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def shuffle_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(rng.sample(lines, len(lines)))


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def lose_the_beginning(rng: random.Random, data: bytes) -> bytes:
    return data[rng.randrange(1, len(data)) :]


def join_with_itself(rng: random.Random, data: bytes) -> bytes:
    return data + data


def overwrite(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice([1, 1, 5, 100])) + data[place + 1 :]


def insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    no_utf8 = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]
    odd = [*no_utf8, b"\0", b"\n", b"\r", b" ", b"\\", b'"', b"{", b"\\u0000", b"\\ud800", b"-", b"\xe2\x80\xa8"]
    return data[:place] + rng.choice(odd) + data[place:]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 9])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def say_another_count(rng: random.Random, data: bytes) -> bytes:
    counts = [b"0", b"1", b"4", b"6", b"-1", b"5.0", b"5e0", b"1" + b"0" * 30, b"1e400", b"null", b'"5"', b"true"]
    return replace_one(rng, rb'(?<="items": )\d+', rng.choice(counts), data)


def add_a_mark(rng: random.Random, data: bytes) -> bytes:
    marks = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08", b"PK\x03\x04", b"\n", b"[", b"#!/bin/sh\n"]
    return rng.choice(marks) + data


def change_line_ends(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b" \n", b"\0\n", b",\n"]))


def change_encoding(rng: random.Random, data: bytes) -> bytes:
    return data.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7"]), "replace")


def replace_one(rng: random.Random, pattern: bytes, value: bytes, data: bytes) -> bytes:
    match = rng.choice(list(re.finditer(pattern, data)))
    return data[: match.start()] + value + data[match.end() :]


WAYS: list[Damage] = [
    cut_a_line, double_a_line, swap_lines, shuffle_lines, truncate, lose_the_beginning, join_with_itself, overwrite,
    insert, flip_bits, say_another_count, add_a_mark, change_line_ends, change_encoding,
]  # fmt: skip


@pytest.mark.parametrize("damage", WAYS, ids=lambda way: way.__name__)
async def test_a_damaged_file_is_imported_as_it_reads_or_not_at_all(
    store: SessionStore, export: bytes, tmp_path: Path, damage: Damage
) -> None:
    for seed in range(SEEDS):
        await import_it(store, tmp_path / "in", damage(random.Random(seed), export), f"seed {seed}")


DEEP = [b"[" * depth + b"]" * depth for depth in (200, 800, 900, 950, 980, 100_000)]
ANY = [json.dumps(value).encode() for value in [None, True, -1, 2**63, 2**64, 10**4000, 0.5, "", "\0", "\ud800"]]
ANY += [b"1" + b"0" * 140_000, b"1e999999999", b"1e-99999", b"NaN", b"[]", b"[{}]", b"{}", b'{"a": 1, "a": 2}', *DEEP]
TEXTS = ["x" * 1001, "é" * 501, "x" * 3_000_000, '{"a":' + DEEP[-1].decode() + "}", "sealed:", "plain:{}", "24:00"]
TEXTS += ["9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z"]
ANY += [json.dumps(text).encode() for text in TEXTS]
OBJECTS = [b'{"a": ' + value + b"}" for value in ANY] + [b'{"\\u0000": 1}', b'{"\\udc00": 1}', b'{"": 0}']
PLACES = {
    "a value": (rb'(?<=": )("[^"\\]*"|\d+|null)', ANY),
    "metadata": (rb'(?<="metadata": )(\{\}|\{"z.*?""\}|\{"a": "".*?\]\})', OBJECTS),
    "an item": (rb'(?<=\n\{"content": )".*"', ANY),
}


@pytest.mark.parametrize("place", PLACES)
async def test_an_odd_value_is_imported_as_it_reads_or_not_at_all(
    store: SessionStore, export: bytes, tmp_path: Path, place: str
) -> None:
    pattern, values = PLACES[place]
    for number, value in enumerate(values):
        data = replace_one(random.Random(number), pattern, value, export)
        await import_it(store, tmp_path / "in", data, f"{place} is {value[:99]!r}")


async def test_what_was_imported_and_deleted_can_be_imported_again(
    store: SessionStore, export: bytes, tmp_path: Path
) -> None:
    for number in range(3):
        assert await import_it(store, tmp_path / "in", export, f"time {number}")
    for number in range(3):
        assert await import_it(store, tmp_path / "in", export, f"time {number}")
        for key in as_it_reads(export):
            await store.delete_session(key)


async def test_rubbish_is_refused(store: SessionStore, tmp_path: Path) -> None:
    rng = random.Random(0)
    for size in (1, 2, 10, 1000, 100_000):
        assert not await import_it(store, tmp_path / "in", rng.randbytes(size), f"{size} bytes")


async def import_it(store: SessionStore, file: Path, data: bytes, told: str) -> bool:
    """Whether the import took the data. Either way, what is stored is what it must be."""
    await asyncio.to_thread(file.write_bytes, data)
    before = await stored(store)
    done = await invoke("sessions", "import", str(file))
    now = await stored(store)
    if done.code == 0:
        assert now == before | as_it_reads(data), (told, done)
        await start_again(store)
        return True
    assert (done.code, done.out) == (1, ""), (told, done)
    assert REFUSAL.fullmatch(done.err), (told, done)
    assert now == before, (told, done)
    return False
