"""`chat`: the answer streams to stdout; what the agent does on the way goes to stderr."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from agents import Agent
from agents.models.interface import Model

from ..agent import build_agent
from ..app import open_app_store, open_model, shows_tool_errors
from ..conversation.approvals import discard, pending
from ..conversation.summary import summarise
from ..conversation.turn import (
    WHILE_STORING,
    AgentChanged,
    ApprovalGone,
    ApprovalNeeded,
    ApprovalPending,
    Done,
    ItemsLeftOut,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
    TurnRefused,
    run_turn,
)
from ..sessions import SessionStoreError, StoredSession
from ..settings import Settings
from .console import CommandError, answer, complain, count, name, note

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

T = TypeVar("T")

LONGEST_NOTE = 200
"""Characters of a tool's arguments or output that are shown."""

LEAVE = {"exit", "quit", "/exit", "/quit"}
HELP = """
exit, quit, Ctrl-D   leave; the conversation is kept
Ctrl-C               stop an answer; on an empty line: leave
arrow up             what you said before
Anything else is said to the agent. --session and --user choose another conversation; `sessions list` shows all.
""".strip()

Said = str | ApprovalNeeded
"""What a turn starts with: a message, or a decided turn that waited for an approval."""


def say(settings: Settings, message: str, session_id: str, user_id: str) -> None:
    """Say one thing, print the answer."""

    async def run() -> None:
        async with _conversation(settings, session_id, user_id) as conversation:
            if sys.stdin.isatty():
                await _finish(conversation, await conversation.pending())
            await _finish(conversation, await conversation.turn(message))

    asyncio.run(run())


async def _finish(conversation: _Conversation, waiting: ApprovalNeeded | None) -> None:
    """Have a turn decided, and go on with it, until it is done."""
    while waiting is not None:
        if not sys.stdin.isatty():
            calls = ", ".join(call.name for call in waiting.calls)
            raise CommandError(
                f"The agent needs approval to call {calls}. The turn waits: run `chat` at a terminal to decide."
            )
        await _decide(waiting)
        waiting = await conversation.turn(waiting)


def converse(settings: Settings, session_id: str, user_id: str) -> None:
    """Talk until "exit" or Ctrl-D, or Ctrl-C on an empty line."""

    async def run() -> None:
        async with _conversation(settings, session_id, user_id) as conversation:
            so_far = f"{count(conversation.items, 'item')} so far" if conversation.items else "nothing said yet"
            note(
                f"Session {name(session_id, user_id)}, {so_far}. Ctrl-C stops an answer, exit leaves, /help tells more."
            )
            prompt = _prompt()
            await _exchange(conversation, await conversation.pending())
            while True:
                try:
                    message = await prompt.prompt_async("> ")
                except KeyboardInterrupt:
                    if not prompt.default_buffer.text:
                        return
                    continue
                except EOFError:
                    return
                word = message.strip().lower()
                if word in LEAVE:
                    return
                if word == "/help":
                    note(HELP, lines=True)
                elif word:
                    await _exchange(conversation, message)

    asyncio.run(run())


@dataclass(frozen=True)
class _Conversation:
    agent: Agent[Any]
    session: StoredSession
    settings: Settings
    items: int
    """How many were there at the start."""

    async def pending(self) -> ApprovalNeeded | None:
        """What an earlier process left to be decided. What does not fit the agent any more is given up, and told."""
        try:
            waiting = await pending(self.agent, self.session)
        except ApprovalGone as gone:
            note(f"{gone} It is discarded now.")
            await discard(self.session)
            return None
        if waiting is not None:
            note("An earlier turn waits for your decision.")
        return waiting

    async def turn(self, said: Said) -> ApprovalNeeded | None:
        """Print what happens; what the agent needs approval for, None if it is done. Says what is stored if stopped."""
        try:
            waiting = await self._follow(said)
        except asyncio.CancelledError as stopped:
            note("")
            if str(stopped) == WHILE_STORING:
                note(WHILE_STORING)
            elif isinstance(said, str):
                note("Stopped. Nothing of this turn is stored.")
            else:
                note("Stopped. Steps that were finished after the approval are stored.")
            raise
        if waiting is None:
            await self._summarise()
        return waiting

    async def _follow(self, said: Said) -> ApprovalNeeded | None:
        agent_name = self.agent.name
        printed = line_is_open = False

        def aside(text: str) -> None:
            nonlocal printed, line_is_open
            if line_is_open:
                answer("")
            printed = line_is_open = False
            note(text if len(text) <= LONGEST_NOTE else text[:LONGEST_NOTE] + "…")

        # Closed even when printing fails, which stops the run.
        settings = self.settings
        turn = run_turn(
            self.agent,
            self.session,
            said,
            max_items=settings.history_max_items,
            max_tokens=settings.history_max_tokens,
            wait_seconds=settings.session_wait_seconds,
            trace_content=settings.trace_content,
        )
        async with aclosing(turn) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        answer(text, newline=False)
                        printed, line_is_open = True, not text.endswith("\n")
                    case ToolCalled(tool, arguments):
                        aside(f"→ {tool}({arguments})")
                    case ToolFinished(output, error):
                        if error is not None and shows_tool_errors(settings):
                            aside("The tool raised an error, which only you see (SHOW_TOOL_ERRORS):")
                            note("".join(traceback.format_exception(error)).rstrip(), lines=True)
                        aside(f"← {output}")
                    case AgentChanged(new_name):
                        if new_name != agent_name:
                            aside(f"→ {new_name} takes over")
                        agent_name = new_name
                    case ItemsLeftOut(what):
                        aside(f"The model's server refused a part of the history. Without it: {' '.join(what)}")
                    case ApprovalNeeded():
                        return event
                    case Done(output):
                        answer("" if printed else output, newline=line_is_open or not printed)
        return None

    async def _summarise(self) -> None:
        after_items, model = self.settings.summarise_after_items, self.agent.model
        if after_items is None or not isinstance(model, Model):
            return
        try:
            if await summarise(self.session, model, after_items=after_items):
                note("The conversation was long: a summary is in its place now.")
        except TurnFailed as failed:
            complain(f"{failed} The answer is stored.")


@asynccontextmanager
async def _conversation(settings: Settings, session_id: str, user_id: str) -> AsyncIterator[_Conversation]:
    async with open_app_store(settings, embedded=True) as store, open_model(settings) as model:
        session = store.session(session_id, user_id=user_id)
        info = await store.find_session(session.ref)
        agent = build_agent(model)
        items = info.item_count if info else 0
        yield _Conversation(agent, session, settings, items)


async def _exchange(conversation: _Conversation, said: str | ApprovalNeeded | None) -> None:
    """One message, or what waits for a decision; an answer that fails does not end the conversation."""
    try:
        waiting = await _stoppable(conversation.turn(said)) if isinstance(said, str) else said
        while waiting is not None:
            await _decide(waiting)
            waiting = await _stoppable(conversation.turn(waiting))
    except asyncio.CancelledError:
        pass
    except ApprovalPending:  # of another process, since this conversation began
        await _exchange(conversation, await conversation.pending())
        note("Now say it once more.")
    except (SessionStoreError, TurnFailed, TurnRefused) as error:
        complain(f"Error: {error}")


async def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Let Ctrl-C cancel this work and nothing else. (The prompt takes Ctrl-C for itself while it is there.)"""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    # Not loop.add_signal_handler, which event loops on Windows do not have.
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        return await task
    finally:
        signal.signal(signal.SIGINT, before)


async def _decide(waiting: ApprovalNeeded) -> None:
    """Ask about each call that needs approval."""
    prompt = _prompt()
    for call, item in zip(waiting.calls, waiting.state.get_interruptions(), strict=True):
        note(f"The agent wants to call {call.name}({call.arguments})")
        try:
            decision = await prompt.prompt_async("Allow it? [y/N] ")
        except (KeyboardInterrupt, EOFError):
            decision = "no"
        if decision.strip().lower() in ("y", "yes"):
            waiting.state.approve(item)
        else:
            waiting.state.reject(item)


def _prompt() -> PromptSession[str]:
    """A line editor on stderr if stdout is piped."""
    from prompt_toolkit import PromptSession  # imported late: an answer to a script needs none of it
    from prompt_toolkit.output import create_output

    return PromptSession(output=create_output(always_prefer_tty=True))
