"""Sessions in a SQLite file: a fourth backend, written by the rules of `SessionStore`.

Usage::

    async with SqliteStore("sessions.db") as store:
        await Runner.run(agent, "Hi", session=store.session("chat-1", user_id="ada"))
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from my_agent.sessions import SessionInfo, SessionPage, SessionRef, StoreUnavailable
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.paging import decode_cursor, encode_cursor
from my_agent.sessions.records import TURN_DAYS, TURNS_KEPT, Batch, Content, Id, Leased, RowPage, Turn, id_text
from my_agent.sessions.retry import run_to_completion
from my_agent.sessions.settings import StoreSettings
from my_agent.sessions.store import ConnectedStore

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, session_id TEXT NOT NULL, content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS items_of_session ON items (user_id, session_id, id);
CREATE TABLE IF NOT EXISTS info (
  user_id TEXT NOT NULL, session_id TEXT NOT NULL, title TEXT, metadata TEXT NOT NULL DEFAULT '{}',
  item_count INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  lease TEXT, lease_until INTEGER, lease_began INTEGER, PRIMARY KEY (user_id, session_id)
);
CREATE TABLE IF NOT EXISTS turns (
  number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, session_id TEXT NOT NULL, id TEXT NOT NULL,
  status TEXT NOT NULL, content TEXT NOT NULL, request_id TEXT, first INTEGER, last INTEGER, time INTEGER NOT NULL,
  UNIQUE (user_id, session_id, id)
);
CREATE INDEX IF NOT EXISTS info_by_time ON info (updated_at, user_id, session_id);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, stored_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS canary (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), text TEXT NOT NULL);
"""

BATCH_MEMORY = 3600 * 1_000_000
"""How long a batch is recognised when it is sent again, in microseconds. Much longer than any call is repeated."""


class SqliteStore(ConnectedStore):
    """All sessions of one file, through one connection that is used by one thread.

    Args:
        path: The file; made if it is not there.
        settings: Limits that all stores share.
    """

    def __init__(self, path: str | Path, settings: StoreSettings | None = None) -> None:
        super().__init__(settings or StoreSettings())
        self._path = Path(path)
        self._connection: sqlite3.Connection | None = None
        # SQLite blocks, so it works in a thread. In one: a call that was cancelled ends before the next one begins.
        self._thread = ThreadPoolExecutor(1, "sqlite")

    # ── Items ───────────────────────────────────────────────────────────────

    async def append(self, ref: SessionRef, batch: Batch) -> None:
        await self._change(lambda db: self._append(db, ref, batch))

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        rows = await self._read(
            "SELECT content FROM items WHERE user_id = ? AND session_id = ? ORDER BY id DESC LIMIT ?",
            *ref,
            -1 if limit is None else min(limit, 2**63 - 1),
        )
        return [content for (content,) in reversed(rows)]

    async def pop(self, ref: SessionRef) -> str | None:
        def take(db: sqlite3.Connection) -> str | None:
            row = db.execute(
                "DELETE FROM items WHERE id = (SELECT max(id) FROM items WHERE user_id = ? AND session_id = ?) "
                "RETURNING content",
                ref,
            ).fetchone()
            if row is None:
                return None
            self._touch(db, ref, -1)
            return str(row[0])

        return await self._change(take)

    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        def replace(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM batches WHERE id = ?", [batch.id.hex]).fetchone():
                return True
            count = -1 if expected_tail is None else len(expected_tail)
            rows = self._newest(db, ref, count)
            if expected_tail is not None and [content for _, content in rows] != list(expected_tail):
                return False
            db.executemany("DELETE FROM items WHERE id = ?", [(number,) for number, _ in rows])
            self._touch(db, ref, -len(rows))
            if batch.rows:
                self._append(db, ref, batch)
            elif expected_tail is None:
                db.execute("DELETE FROM turns WHERE user_id = ? AND session_id = ?", ref)
                db.execute("INSERT INTO batches VALUES (?, ?)", [batch.id.hex, _now()])
            return True

        return await self._change(replace)

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        limit, last = max(1, min(limit, 500)), 2**63 - 1 if before is None else before - 1
        find = "SELECT id, content FROM items WHERE user_id = ? AND session_id = ? AND id <= ? ORDER BY id DESC LIMIT ?"
        return RowPage.of_rows(await self._read(find, *ref, last, limit + 1), limit)

    # ── Turns ───────────────────────────────────────────────────────────────

    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        def take(db: sqlite3.Connection) -> Leased | None:
            now = _now()
            begin = "INSERT OR IGNORE INTO info (user_id, session_id, created_at, updated_at) VALUES (?, ?, ?, ?)"
            began = db.execute(begin, [*ref, now, now]).rowcount
            taken = db.execute(
                "UPDATE info SET lease = ?, lease_until = ?, lease_began = coalesce(lease_began, ?) WHERE user_id = ? "
                "AND session_id = ? AND (lease IS NULL OR lease = ? OR lease_until <= ?) "
                "RETURNING lease_began AND item_count = 0",
                [token.hex, now + int(seconds * 1e6), began, *ref, token.hex, now],
            ).fetchone()
            if taken is None:
                return None
            rows = self._newest(db, ref, -1 if limit is None else min(limit, 2**63 - 1))
            last = self._turns(db, ref, "ORDER BY number DESC LIMIT 1")
            same = self._turns(db, ref, "AND request_id = ? ORDER BY number DESC LIMIT 1", request_id)
            newest, asked = (found[0] if found else None for found in (last, same))
            return Leased([row for _, row in rows], newest, asked, taken[0] == 1)

        return await self._change(take)

    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        statement = "UPDATE info SET lease_until = ? WHERE user_id = ? AND session_id = ? AND lease = ?"
        values = [_now() + int(seconds * 1e6), *ref, token.hex]
        return await self._change(lambda db: db.execute(statement, values).rowcount > 0)

    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        def give_back(db: sqlite3.Connection) -> bool:
            find = "SELECT lease_began FROM info WHERE user_id = ? AND session_id = ? AND lease = coalesce(?, lease)"
            row = db.execute(find, [*ref, None if token is None else token.hex]).fetchone()
            if row is None:
                return False
            self._end_lease(db, ref)
            if row[0]:
                db.execute(
                    "DELETE FROM info WHERE user_id = ? AND session_id = ? AND item_count = 0 AND title IS NULL "
                    "AND metadata = '{}' AND NOT EXISTS (SELECT 1 FROM turns WHERE user_id = ? AND session_id = ?)",
                    [*ref, *ref],
                )
            return True

        return await self._change(give_back)

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        which = "AND (? OR id = ?) ORDER BY number DESC LIMIT ?"
        values = (turn_id is None, turn_id, max(1, limit))
        return await self._change(lambda db: self._turns(db, ref, which, *values), begin="BEGIN")

    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        statement = (
            "UPDATE turns SET status = ?, content = ?, time = ? WHERE user_id = ? AND session_id = ? AND id = ? "
            "AND ((status = ? AND content = ?) OR (status = ? AND content = ?)) "
            "AND (? IS NULL OR EXISTS (SELECT 1 FROM info WHERE user_id = ? AND session_id = ? AND lease = ?))"
        )
        texts = (before.status, before.content, after.status, after.content)
        token = None if lease is None else lease.hex
        values = [after.status, after.content, _now(), *ref, before.id, *texts, token, *ref, token]
        return await self._change(lambda db: db.execute(statement, values).rowcount > 0)

    # ── Sessions ────────────────────────────────────────────────────────────

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        rows = await self._read(f"{_SELECT} WHERE user_id = ? AND session_id = ?", *ref)
        return _info(rows[0]) if rows else None

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        limit = max(1, min(limit, 500))
        conditions, values = ["1"], list[object]()
        if user_id is not None:
            conditions.append("user_id = ?")
            values.append(id_text("user_id", user_id))
        if cursor is not None:
            before, *names = decode_cursor(cursor)
            conditions.append("(updated_at, user_id, session_id) < (?, ?, ?)")
            values += [_microseconds(before), *names]
        order = "ORDER BY updated_at DESC, user_id DESC, session_id DESC LIMIT ?"
        # One more than asked for shows whether there is a next page.
        rows = await self._read(f"{_SELECT} WHERE {' AND '.join(conditions)} {order}", *values, limit + 1)
        sessions = [_info(row) for row in rows[:limit]]
        return SessionPage(sessions, encode_cursor(sessions[-1]) if len(rows) > limit else None)

    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        statement = (
            "UPDATE info SET title = coalesce(?, title), metadata = coalesce(?, metadata) "
            "WHERE user_id = ? AND session_id = ?"
        )
        encoded = None if metadata is None else json.dumps(metadata)
        return await self._change(lambda db: db.execute(statement, [title, encoded, *ref]).rowcount > 0)

    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        def replace(db: sqlite3.Connection) -> bool:
            found = db.execute("SELECT title, metadata FROM info WHERE user_id = ? AND session_id = ?", ref).fetchone()
            if found is None or (found[0], json.loads(found[1])) != (before.title, before.metadata):
                return False
            part = "SELECT id, content FROM items WHERE user_id = ? AND session_id = ? ORDER BY id LIMIT ? OFFSET ?"
            rows = db.execute(part, [*ref, len(before.rows), before.first]).fetchall()
            if [content for _, content in rows] != list(before.rows):
                return False
            new = zip(after.rows, (number for number, _ in rows), strict=True)
            db.executemany("UPDATE items SET content = ? WHERE id = ?", new)
            values = [after.title, json.dumps(after.metadata), *ref]
            db.execute("UPDATE info SET title = ?, metadata = ? WHERE user_id = ? AND session_id = ?", values)
            return True

        return await self._change(replace)

    async def delete_session(self, ref: SessionRef) -> bool:
        return await self._change(lambda db: self._delete(db, [ref])) > 0

    async def delete_user(self, user_id: Id) -> int:
        owner = id_text("user_id", user_id)
        find = "SELECT user_id, session_id FROM info WHERE user_id = ?"
        return await self._change(lambda db: self._delete(db, db.execute(find, [owner]).fetchall()))

    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        find = "SELECT user_id, session_id FROM info WHERE updated_at < ? ORDER BY updated_at LIMIT ?"
        values = [_microseconds(older_than), limit]
        return await self._change(lambda db: self._delete(db, db.execute(find, values).fetchall()))

    # ── The store itself ────────────────────────────────────────────────────

    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        def keep(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT text FROM canary").fetchone()
            now = None if row is None else str(row[0])
            if now != kept or now == text:
                return now
            db.execute("DELETE FROM canary")
            if text is not None:
                db.execute("INSERT INTO canary VALUES (1, ?)", [text])
            return text

        return await self._change(keep)

    # ── Opening: `ConnectedStore` calls these ───────────────────────────────

    async def _connect(self) -> str | None:
        rows = await self._transaction(lambda db: db.execute("SELECT text FROM canary").fetchall(), "BEGIN")
        return rows[0][0] if rows else None

    async def _disconnect(self) -> None:
        await self._in_thread(self._close)

    def _forget(self) -> None:
        """The thread and its connection work for any event loop."""

    # ── Inside: what runs in the thread ─────────────────────────────────────

    def _append(self, db: sqlite3.Connection, ref: SessionRef, batch: Batch) -> None:
        now = _now()
        # The same batch twice stores it once: its id is written in the same transaction as its rows.
        if not db.execute("INSERT OR IGNORE INTO batches VALUES (?, ?)", [batch.id.hex, now]).rowcount:
            return
        if (
            batch.lease
            and not db.execute(
                "SELECT 1 FROM info WHERE user_id = ? AND session_id = ? AND lease = ?", [*ref, batch.lease.hex]
            ).fetchone()
        ):
            raise LeaseLost
        db.execute("DELETE FROM batches WHERE stored_at < ?", [now - BATCH_MEMORY])
        db.execute(
            "INSERT INTO info (user_id, session_id, title, created_at, updated_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET title = coalesce(title, excluded.title)",
            [*ref, batch.title, now, now],
        )
        insert = "INSERT INTO items (user_id, session_id, content) VALUES (?, ?, ?)"
        places = [db.execute(insert, [*ref, row.content]).lastrowid for row in batch.rows]
        self._touch(db, ref, len(places))
        if turn := batch.turn:
            db.execute(
                "INSERT INTO turns (user_id, session_id, id, status, content, request_id, first, last, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, session_id, id) DO UPDATE SET "
                "status = excluded.status, content = excluded.content, request_id = excluded.request_id, "
                "first = coalesce(first, excluded.first), last = coalesce(excluded.last, last), time = excluded.time",
                [*ref, *turn[:4], places[0] if places else None, places[-1] if places else None, now],
            )
            db.execute(
                "DELETE FROM turns WHERE user_id = ? AND session_id = ? AND number NOT IN "
                "(SELECT number FROM turns WHERE user_id = ? AND session_id = ? ORDER BY number DESC LIMIT ?)",
                [*ref, *ref, TURNS_KEPT],
            )
            db.execute("DELETE FROM turns WHERE time < ?", [now - TURN_DAYS * 86_400_000_000])
        if batch.release:
            self._end_lease(db, ref)

    def _end_lease(self, db: sqlite3.Connection, ref: SessionRef) -> None:
        db.execute(
            "UPDATE info SET lease = NULL, lease_until = NULL, lease_began = NULL WHERE user_id = ? AND session_id = ?",
            ref,
        )

    def _turns(self, db: sqlite3.Connection, ref: SessionRef, which: str, *values: object) -> list[Turn]:
        find = f"{_TURNS} WHERE user_id = ? AND session_id = ? {which}"
        found = db.execute(find, [*ref, *values]).fetchall()
        return [Turn(*row) for row in found]

    def _newest(self, db: sqlite3.Connection, ref: SessionRef, count: int) -> list[tuple[int, str]]:
        """Ids and texts of the newest rows, oldest first; -1 for all."""
        find = "SELECT id, content FROM items WHERE user_id = ? AND session_id = ? ORDER BY id DESC LIMIT ?"
        return db.execute(find, [*ref, count]).fetchall()[::-1]

    def _touch(self, db: sqlite3.Connection, ref: SessionRef, more: int) -> None:
        """The session has been written to, and has so many items more."""
        # max: two writes in one microsecond, or a clock set back, must not change the order of sessions.
        statement = (
            "UPDATE info SET item_count = item_count + ?, updated_at = max(?, 1 + (SELECT max(updated_at) FROM info)) "
            "WHERE user_id = ? AND session_id = ?"
        )
        db.execute(statement, [more, _now(), *ref])

    def _delete(self, db: sqlite3.Connection, keys: Sequence[tuple[str, str]]) -> int:
        db.executemany("DELETE FROM items WHERE user_id = ? AND session_id = ?", keys)
        db.executemany("DELETE FROM turns WHERE user_id = ? AND session_id = ?", keys)
        before = db.total_changes
        db.executemany("DELETE FROM info WHERE user_id = ? AND session_id = ?", keys)
        return db.total_changes - before

    # ── Inside: the connection ──────────────────────────────────────────────

    async def _read(self, statement: str, *values: object) -> list[Any]:
        return await self._change(lambda db: db.execute(statement, values).fetchall(), begin="BEGIN")

    async def _change(self, work: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE") -> T:
        if not self._admitted or self._loop is not asyncio.get_running_loop():
            await self.open()
        # A thread cannot be cancelled, so the caller who is waits until it is done.
        return await run_to_completion(self._transaction(work, begin), self.settings.session_settle_seconds)

    async def _transaction(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        """Do `work` in one transaction: all of it or nothing, and nobody else's in between."""

        def transaction() -> T:
            sent = False
            try:
                db = self._connection or self._open()
                db.execute(begin)
                sent = True
                try:
                    result = work(db)
                except LeaseLost:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
            except sqlite3.Error as error:
                # Whatever it was: a new connection starts clean, and the file has all of the transaction or nothing.
                self._close()
                raise StoreUnavailable(f"{self._path}: {error}. Trying again may help.", maybe_applied=sent) from error
            return result

        return await self._in_thread(transaction)

    def _open(self) -> sqlite3.Connection:
        # Another process may write as well: wait for it. isolation_level=None: transactions are begun by us alone.
        self._connection = db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {SCHEMA}")
        return db

    def _close(self) -> None:
        db, self._connection = self._connection, None
        if db is not None:
            db.close()

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)


_TURNS = "SELECT id, status, content, request_id, first, last FROM turns"
_SELECT = "SELECT user_id, session_id, title, item_count, created_at, updated_at, metadata FROM info"


def _info(row: tuple[Any, ...]) -> SessionInfo:
    user_id, session_id, title, count, created_at, updated_at, metadata = row
    return SessionInfo(user_id, session_id, title, count, _time(created_at), _time(updated_at), json.loads(metadata))


def _now() -> int:
    return time.time_ns() // 1000


def _time(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
