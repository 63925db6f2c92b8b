"""What a run has read of its session and adds to it: in memory until the turn is stored as a whole.

The SDK writes the user's message before it asks the model, and each step of the agent by itself. A turn that breaks off
would leave a message without an answer, which a retry doubles, or a prompt that a guardrail has blocked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from .records import Batch, Row, Turn


@dataclass
class TurnBuffer:
    """Of the session that a run holds, see `StoredSession.leased`."""

    lease: UUID
    known: list[str] | None = None
    """The newest stored rows, oldest first; None: the store is asked each time."""
    is_all: bool = False
    """Whether there are no older ones."""
    at_once: bool = False
    """Store each step when it is added. For a turn that is resumed after an approval: its tools were allowed once and
    have acted, and the SDK's `RunState` keeps account of what is stored."""
    turn: Turn | None = None
    """The record that steps which are stored at once belong to."""
    added: list[Row] = field(default_factory=list)
    title: str | None = None
    stored: int = 0
    """Items that this turn has stored."""
    retries: int = 0
    """How often the store was asked once more."""
    skipped: int = 0
    """Rows of the history that could not be read."""
    released: bool = False
    """Whether the turn is stored, and its lease given back."""

    def read(self, rows: list[str], limit: int | None) -> None:
        """Keep the newest stored rows, where `limit` were asked for."""
        self.known, self.is_all = rows, limit is None or len(rows) < limit

    def begin(self, turn: Turn | None, *, at_once: bool) -> None:
        """Forget what an earlier attempt has added."""
        self.turn, self.at_once, self.title = turn, at_once, None
        self.added.clear()
        if at_once:
            self.known = None

    def count_retry(self) -> None:
        self.retries += 1

    def add(self, batch: Batch) -> None:
        self.added += batch.rows
        self.title = self.title or batch.title

    def newest(self, limit: int | None) -> list[str] | None:
        """The newest rows of all, oldest first; None if the store has to be asked for more."""
        added = [row.content for row in self.added]
        if limit is not None and limit <= len(added):
            return added[-limit:]
        if self.known is None or not (self.is_all or (limit is not None and limit <= len(self.known) + len(added))):
            return None
        rows = [*self.known, *added]
        return rows if limit is None else rows[-limit:]
