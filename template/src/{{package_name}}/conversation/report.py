"""What a turn has cost, and the one line that it leaves in the log; neither contains what was said."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, astuple, dataclass
from time import monotonic
from typing import Any, Self

import agents

from ..sessions import SessionRef
from ..sessions.turn_buffer import TurnBuffer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Calls of models and their tokens. `cached_tokens` are a part of `input_tokens`."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def of(cls, usage: agents.Usage) -> Self:
        """What the SDK has counted so far."""
        return cls(
            usage.requests, usage.input_tokens, usage.input_tokens_details.cached_tokens or 0, usage.output_tokens
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


class TurnReport:
    """Follows one turn: how long it takes, what it costs.

    Args:
        ref: Its session.
    """

    def __init__(self, ref: SessionRef) -> None:
        self._ref = ref
        self.counts(agents.Usage())
        self._started = monotonic()
        self._first_text: float | None = None

    def counts(self, usage: agents.Usage) -> None:
        """A run begins, for which the SDK counts this.

        The state of a resumed run has counted the part before the approval already, which was reported then.
        """
        self._counted, self._before = usage, Usage.of(usage)

    def text_came(self) -> None:
        """The first piece of the answer, or a later one."""
        self._first_text = self._first_text or monotonic() - self._started

    @property
    def usage(self) -> Usage:
        """The cost of this turn so far."""
        return Usage.of(self._counted) - self._before

    def log(self, outcome: str | BaseException, buffer: TurnBuffer) -> None:
        """Write the line, at level INFO.

        Args:
            outcome: "done", "approval", or what broke the turn off.
            buffer: What went between the turn and its store.
        """
        if isinstance(outcome, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
            outcome = "stopped"
        elif isinstance(outcome, BaseException):
            outcome = f"failed: {type(outcome).__name__}"
        usage, seconds, first = self.usage, monotonic() - self._started, self._first_text
        fields: dict[str, Any] = {
            "session": self._ref.session_id,
            "user": self._ref.user_id,
            "outcome": outcome,
            "seconds": round(seconds, 3),
            "first_text_seconds": None if first is None else round(first, 3),
            "items": buffer.stored,
            "retries": buffer.retries,
            "rows_skipped": buffer.skipped,
            **asdict(usage),
        }
        line = " ".join(f"{name}={value!r}" for name, value in fields.items())
        logger.info("Turn: %s", line, extra={"fields": fields})
