"""What happens during a turn, and what may come of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents import RunState, StreamEvent
from agents.items import TResponseInputItem

from .report import Usage


@dataclass(frozen=True)
class RunContext:
    """Goes with a run to its tools, and to the session, which refuses runs of other users."""

    user_id: str


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer, as it is written."""

    text: str


@dataclass(frozen=True)
class ToolCalled:
    """The agent calls a tool; arguments are the JSON text that the model wrote."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFinished:
    """A tool has answered."""

    output: str
    error: Exception | None = field(default=None, repr=False)
    """What the tool raised, if the SDK answered in its place. The model does not see it."""


@dataclass(frozen=True)
class AgentChanged:
    """Another agent took over."""

    name: str


@dataclass(frozen=True)
class ApprovalNeeded:
    """The turn stands still until its tool calls are decided. What it did so far is stored, and its state with it.

    Decide each of `state.get_interruptions()` with `state.approve` or `state.reject`, then give this to `run_turn`; in
    another process, or later, `approvals.pending` finds it again. Of several who do so at once one goes on.
    """

    calls: list[ToolCalled]
    state: RunState[RunContext]
    usage: Usage = field(default=Usage(), compare=False)
    """What it cost until here."""
    turn_id: str = field(default="", compare=False)
    pause: str = field(default="", compare=False, repr=False)
    """Which pause of the turn this is."""


@dataclass(frozen=True)
class Done:
    """The turn is over, and all of it is stored."""

    output: str
    usage: Usage = field(default=Usage(), compare=False)
    """What it cost; for a turn that was resumed: since the approval."""
    turn_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class ItemsLeftOut:
    """The API refused a part of the history, and is asked once more without it. What is stored stays as it is."""

    what: list[str]
    """What is left out, as short sentences."""


@dataclass(frozen=True)
class SdkEvent:
    """An event as the SDK gives it, for those who asked for them."""

    event: StreamEvent


Message = str | list[TResponseInputItem]
"""What a user says: a text, or messages of the role `user` with images and files in them."""

Event = TextDelta | ToolCalled | ToolFinished | AgentChanged | ApprovalNeeded | ItemsLeftOut | SdkEvent | Done


class TurnFailed(Exception):
    """A turn broke off. The message says why and what to do.

    Nothing of the turn is stored, so the same message can be sent again. Of a turn that was resumed after an approval,
    the finished steps stay stored.
    """


class TurnRefused(Exception):
    """A turn did not begin. The message says why; nothing was changed."""


class SessionBusy(TurnRefused):
    """Another run is still at work on this session."""


class ApprovalPending(TurnRefused):
    """An earlier turn waits until its tool calls are decided; `approvals.pending` and `approvals.discard` help."""


class ApprovalGone(TurnRefused):
    """What was decided waits no longer: it was decided before, or the conversation went on."""
