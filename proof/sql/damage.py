"""Rows that somebody damaged, and a disk that is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from proof.support.helpers import missing

LARGE = "x" * 100_000
"""An item that does not fit into a page of the table: the server keeps it in a file beside the table."""


async def overwrite_row(address: str, age: int, text: str) -> None:
    """Put a text in the place of the n-th newest stored row."""
    connection = await asyncpg.connect(address, statement_cache_size=0)
    try:
        done = await connection.execute(
            "UPDATE agent_sessions SET content = $2 "
            "WHERE id = (SELECT id FROM agent_sessions ORDER BY id DESC OFFSET $1 - 1 LIMIT 1)",
            age,
            text,
        )
        assert done == "UPDATE 1"
    finally:
        await connection.close()


@contextmanager
def full_disk(file: Path) -> Iterator[None]:
    """An empty file that cannot grow, as on a full disk: it is /dev/full, where the kernel answers a write with ENOSPC.

    The server meets what it meets on a full disk, at the same call; and no rights are needed for it.
    """
    if not Path("/dev/full").exists():
        missing("no /dev/full here: this test needs Linux")
    assert file.stat().st_size == 0
    file.rename(aside := file.with_suffix(".aside"))
    try:
        file.symlink_to("/dev/full")
        yield
    finally:
        aside.replace(file)
