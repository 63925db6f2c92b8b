"""What is noted of a turn beside its items: who spoke, what it cost, the state of a run that waits for an approval."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from ..sessions.records import Turn, new_id
from .report import Usage

VERSION = 1
SOMEWHERE = -1
"""A session may have a summary, but nobody knows where."""
Status = Literal["done", "approval", "resumed", "discarded"]
"""`approval` waits for one, `resumed` got one and runs, or ran when its process died."""


@dataclass(frozen=True)
class TurnNote:
    """The content of a turn's record."""

    agent: str
    """Who spoke last."""
    output: str | None = None
    """The answer; None: there is none yet."""
    usage: Usage = field(default_factory=Usage)
    total: Usage = field(default_factory=Usage)
    """What the session has cost until here."""
    summary: int | None = SOMEWHERE
    """See `SummaryPlace.position`."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the client notes of its request."""
    calls: list[dict[str, str]] = field(default_factory=list)
    """What waits for an approval: call_id, name and arguments of each."""
    state: dict[str, Any] | None = None
    """The run that waits, as the SDK's `RunState.to_json` gives it."""
    pause: str = ""
    """Which pause of the turn it is: one that goes on may pause again."""
    claim: str = ""
    """Who went on with it."""

    def text(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def of(turn: Turn | None) -> TurnNote | None:
        """What a record says; None if there is none, or this program cannot read it: a newer one wrote it."""
        try:
            fields = json.loads(turn.content) if turn is not None else None
            known = isinstance(fields, dict) and fields.pop("version", None) == VERSION
            return _NOTES.validate_python(fields) if known else None
        except ValueError:  # of pydantic as well
            return None


_NOTES = TypeAdapter(TurnNote)


def turn_id(token: UUID) -> str:
    """What the turn of the run with this lease is called."""
    return f"resp_{token.hex}"


def record(
    status: str, note: TurnNote, turn: Turn | None = None, request_id: str | None = None, token: UUID | None = None
) -> Turn:
    """A record to store: a new one, or `turn` as it goes on."""
    if turn is None:
        return Turn(turn_id(token or new_id()), status, note.text(), request_id)
    return turn._replace(status=status, content=note.text())
