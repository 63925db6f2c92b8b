"""Conversations as the SDK stores them, made up from a seed: all kinds of turns, finished and interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

from agents.items import TResponseInputItem

from proof.support.model_input import ANSWERED_BY

LOCAL_CALLS = [
    "function_call",
    "custom_tool_call",
    "computer_call",
    "shell_call",
    "local_shell_call",
    "apply_patch_call",
]
IMAGE = "data:image/png;base64," + "iVBORw0K" * 500


class History:
    """A conversation that grows.

    Attributes:
        items: What is stored.
        reasoning_of: What the API remembers, see `model_input.refusals`.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.reasons = self.random.random() < 0.8
        self.items: list[TResponseInputItem] = []
        self.reasoning_of: dict[str, str] = {}
        self._last = 0
        if self.random.random() < 0.2:
            self._add(
                type="message", role="assistant", content=[{"type": "output_text", "text": "Hi!", "annotations": []}]
            )

    def grow(self, turns: int) -> History:
        kinds: Sequence[Callable[[], None]] = (
            self.plain, self.plain, self.tools, self.tools, self.handoff, self.picture, self.hosted, self.mcp,
            self.mcp_abandoned, self.search, self.program, self.waiting, self.failed, self.summary,
        )  # fmt: skip
        for _ in range(turns):
            self.random.choice(kinds)()
        return self

    # ── Turns ───────────────────────────────────────────────────────────────

    def plain(self) -> None:
        self.says()
        self.answers()

    def tools(self) -> None:
        self.says()
        for _ in range(self.random.randint(1, 3)):
            self.calls(self.random.choices(LOCAL_CALLS, k=self.random.randint(1, 3)))
        self.answers()

    def handoff(self) -> None:
        self.says()
        self.calls(["function_call"])
        self.answers()

    def picture(self) -> None:
        part = {"type": "input_image", "detail": "auto", "image_url": IMAGE}
        self._add(role="user", content=[{"type": "input_text", "text": "What is this?"}, part])
        self.answers()

    def hosted(self) -> None:
        self.says()
        for what in ("web_search_call", "code_interpreter_call"):
            self.model_writes(what, status="completed")
        if self.random.random() < 0.5:
            self.model_writes("image_generation_call", result="iVBORw0K" * 500, status="completed")
        self.answers()

    def mcp(self) -> None:
        self.says()
        request = self.model_writes("mcp_approval_request", arguments="{}", name="tool", server_label="s")
        self._add(type="mcp_approval_response", approval_request_id=request, approve=True)
        self.model_writes("mcp_call", arguments="{}", name="tool", server_label="s", output="done")
        self.answers()

    def mcp_abandoned(self) -> None:
        self.says()
        self.model_writes("mcp_approval_request", arguments="{}", name="tool", server_label="s")

    def search(self) -> None:
        """Tools that the API looks for: call and output have no call id."""
        self.says()
        self.model_writes("tool_search_call", arguments={}, execution="server", status="completed")
        self._add(type="tool_search_output", tools=[], execution="server", status="completed")
        self.answers()

    def program(self) -> None:
        self.says()
        name = self._name("call")
        self.model_writes("program", call_id=name, code="…", fingerprint="f")
        caller = {"type": "program", "caller_id": name}
        finished = self.random.random() < 0.7
        inner = self._name("call")
        self._add(type="function_call", id=self._name("fc"), call_id=inner, name="t", arguments="{}", caller=caller)
        if finished or self.random.random() < 0.5:
            self._add(type="function_call_output", call_id=inner, output="done", caller=caller)
        if finished:
            self._add(type="program_output", id=self._name("po"), call_id=name, result="", status="completed")
            self.answers()

    def waiting(self) -> None:
        """Some of the calls wait for an approval, and the person says something else instead."""
        self.says()
        if self.random.random() < 0.5:
            self.calls(["function_call"])
        kinds = self.random.choices(LOCAL_CALLS, k=self.random.randint(1, 3))
        self.calls(kinds, unanswered=set(self.random.sample(range(len(kinds)), self.random.randint(1, len(kinds)))))

    def failed(self) -> None:
        """The model failed, at once or after a tool was called."""
        self.says()
        if self.random.random() < 0.5:
            self.calls(["function_call"])

    def summary(self) -> None:
        self._add(type="compaction", id=self._name("cmp"), encrypted_content="x" * 300)

    # ── Their parts ─────────────────────────────────────────────────────────

    def says(self) -> None:
        self._add(role="user", content="word " * self.random.randint(1, 60))

    def answers(self) -> None:
        text = "word " * self.random.randint(1, 60)
        part = {"type": "output_text", "text": text, "annotations": []}
        self.model_writes("message", role="assistant", status="completed", content=[part])

    def calls(self, kinds: Sequence[str], unanswered: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Parallel calls of one answer, and then their outputs, as the SDK stores a step."""
        reasoning = self.thinks()
        names = [self._name("call") for _ in kinds]
        for what, name in zip(kinds, names, strict=True):
            self.model_writes(what, reasoning, call_id=name, name="tool", arguments="{}", status="completed")
        for number, (what, name) in enumerate(zip(kinds, names, strict=True)):
            if number not in unanswered:
                self._add(type=ANSWERED_BY[what], call_id=name, output="word " * self.random.randint(1, 200))

    def thinks(self) -> str | None:
        if not self.reasons:
            return None
        name = self._name("rs")
        self._add(type="reasoning", id=name, summary=[], encrypted_content="x" * self.random.randint(50, 500))
        return name

    def model_writes(self, what: str, reasoning: str | None = "", **fields: Any) -> str:
        reasoning = self.thinks() if reasoning == "" else reasoning
        name = self._name(what)
        if reasoning is not None:
            self.reasoning_of[name] = reasoning
        self._add(type=what, id=name, **fields)
        return name

    def _name(self, prefix: str) -> str:
        self._last += 1
        return f"{prefix}_{self._last}"

    def _add(self, **fields: Any) -> None:
        self.items.append(cast(TResponseInputItem, fields))
