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

from agents import Agent, RunState

from ..agent import build_agent
from ..app import open_app_store, open_model, shows_tool_errors
from ..conversation.turn import (
    AgentChanged,
    ApprovalNeeded,
    Done,
    RunContext,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
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

Said = str | RunState[RunContext]
"""What a turn starts with: a message, or the state of a turn that waited for an approval."""


def say(settings: Settings, message: str, session_id: str, user_id: str) -> None:
    """Say one thing, print the answer."""

    async def run() -> None:
        async with _conversation(settings, session_id, user_id) as conversation:
            waiting = await conversation.turn(message)
            while waiting is not None:
                if not sys.stdin.isatty():
                    calls = ", ".join(call.name for call in waiting.calls)
                    raise CommandError(f"The agent needs approval to call {calls}. Run this at a terminal to decide.")
                await _decide(waiting)
                waiting = await conversation.turn(waiting.state)

    asyncio.run(run())


def converse(settings: Settings, session_id: str, user_id: str) -> None:
    """Talk until "exit" or Ctrl-D, or Ctrl-C on an empty line."""

    async def run() -> None:
        async with _conversation(settings, session_id, user_id) as conversation:
            so_far = f"{count(conversation.items, 'item')} so far" if conversation.items else "nothing said yet"
            note(
                f"Session {name(session_id, user_id)}, {so_far}. Ctrl-C stops an answer, exit leaves, /help tells more."
            )
            prompt = _prompt()
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
    max_items: int
    max_tokens: int | None
    items: int
    """How many were there at the start."""
    shows_tool_errors: bool

    async def turn(self, said: Said) -> ApprovalNeeded | None:
        """Print what happens; what the agent needs approval for, None if it is done."""
        agent_name = self.agent.name
        printed = line_is_open = False

        def aside(text: str) -> None:
            nonlocal printed, line_is_open
            if line_is_open:
                answer("")
            printed = line_is_open = False
            note(text if len(text) <= LONGEST_NOTE else text[:LONGEST_NOTE] + "…")

        # Closed even when printing fails, which stops the run.
        async with aclosing(
            run_turn(self.agent, self.session, said, max_items=self.max_items, max_tokens=self.max_tokens)
        ) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        answer(text, newline=False)
                        printed, line_is_open = True, not text.endswith("\n")
                    case ToolCalled(tool, arguments):
                        aside(f"→ {tool}({arguments})")
                    case ToolFinished(output, error):
                        if error is not None and self.shows_tool_errors:
                            aside("The tool raised an error, which only you see (SHOW_TOOL_ERRORS):")
                            note("".join(traceback.format_exception(error)).rstrip(), lines=True)
                        aside(f"← {output}")
                    case AgentChanged(new_name):
                        if new_name != agent_name:
                            aside(f"→ {new_name} takes over")
                        agent_name = new_name
                    case ApprovalNeeded():
                        return event
                    case Done(output):
                        answer("" if printed else output, newline=line_is_open or not printed)
        return None


@asynccontextmanager
async def _conversation(settings: Settings, session_id: str, user_id: str) -> AsyncIterator[_Conversation]:
    async with open_app_store(settings, embedded=True) as store, open_model(settings) as model:
        session = store.session(session_id, user_id=user_id)
        info = await store.find_session(session.ref)
        agent = build_agent(model)
        items = info.item_count if info else 0
        yield _Conversation(
            agent, session, settings.history_max_items, settings.history_max_tokens, items, shows_tool_errors(settings)
        )


async def _exchange(conversation: _Conversation, message: str) -> None:
    """One message; an answer that fails does not end the conversation."""
    try:
        waiting = await _stoppable(conversation.turn(message))
        while waiting is not None:
            await _decide(waiting)
            waiting = await _stoppable(conversation.turn(waiting.state))
    except asyncio.CancelledError:
        note("")
        note("Stopped.")
    except (SessionStoreError, TurnFailed) as error:
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
