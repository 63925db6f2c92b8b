"""Which items of a conversation belong together: the Responses API refuses one that comes without the others.

- A call needs its output and an output needs its call, in this order.
- Reasoning needs one of the items that the model wrote right after it, and those need their reasoning.
- What a program called needs the program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from agents.items import TResponseInputItem

OUTPUTS = {
    "apply_patch_call": "apply_patch_call_output",
    "computer_call": "computer_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "function_call": "function_call_output",
    "local_shell_call": "local_shell_call_output",
    "mcp_approval_request": "mcp_approval_response",
    "program": "program_output",
    "shell_call": "shell_call_output",
    "tool_search_call": "tool_search_output",
}
"""Kinds of calls, and the kind of item that answers each."""

CALLS = {output: call for call, output in OUTPUTS.items()}

HOSTED = {
    "code_interpreter_call",
    "file_search_call",
    "image_generation_call",
    "mcp_call",
    "mcp_list_tools",
    "web_search_call",
}
"""Calls that the API carries out itself; the result is in the same item."""

KINDS = {"message", "reasoning", "compaction", *OUTPUTS, *CALLS, *HOSTED}

_ID_OPTIONAL = {"message", "function_call", "custom_tool_call", "shell_call", "apply_patch_call"}
"""Kinds that the API takes without an id. It looks for the reasoning of an item by the item's id."""

NO_CALL = "output without its call"
NO_OUTPUT = "call without its output"
NO_FOLLOWER = "reasoning without what follows it"
NO_REASONING = "item without its reasoning"


class Changes(NamedTuple):
    """What has to change so that a list of items can be sent. Indexes are those of the list."""

    gone: dict[int, str]
    """Items to leave out, and why."""
    unlinked: dict[int, TResponseInputItem]
    """Items that stay although their reasoning goes: without their id, by which the API would ask for it."""


def kind(item: TResponseInputItem) -> str:
    """The type of an item. A message may lack one."""
    return str(field(item, "type") or "message")


def field(item: TResponseInputItem, name: str) -> Any:
    return cast(dict[str, Any], item).get(name)


def is_user_message(item: TResponseInputItem) -> bool:
    return kind(item) == "message" and field(item, "role") == "user"


def is_summary(item: TResponseInputItem) -> bool:
    return kind(item) == "compaction"


def opens(item: TResponseInputItem) -> bool:
    """Whether a history may begin with this item: nothing before it belongs to it."""
    return is_summary(item) or is_user_message(item)


def is_written_by_model(item: TResponseInputItem) -> bool:
    """Whether reasoning may belong to it: an answer or a call."""
    what = kind(item)
    return what in OUTPUTS or what in HOSTED or (what == "message" and field(item, "role") == "assistant")


def usable(items: Sequence[TResponseInputItem]) -> list[TResponseInputItem]:
    """The items without those that lack what belongs to them."""
    gone = close(items).gone
    return [item for index, item in enumerate(items) if index not in gone] if gone else list(items)


def close(
    items: Sequence[TResponseInputItem],
    leave_out: Mapping[int, str] = MappingProxyType({}),
    waits_from: int | None = None,
) -> Changes:
    """What else has to go when some items are left out.

    Args:
        items: All of them.
        leave_out: Indexes of items to leave out, and why.
        waits_from: Calls from this index on may still get their output, so they stay.
    """
    gone, unlinked = dict(leave_out), dict[int, TResponseInputItem]()
    partners, followers, programs = _partners(items), dict(_followers(items)), _programs(items)
    size = -1
    while len(gone) > size:  # what goes may take more with it
        size = len(gone)
        for index, item in enumerate(items):
            if index not in gone and (why := _broken(index, item, items, partners, programs, gone, waits_from)):
                gone[index] = why
        for reasoning, written in followers.items():
            if reasoning not in gone and all(index in gone for index in written):
                gone[reasoning] = NO_FOLLOWER
            elif reasoning in gone:
                for index in written:
                    if index in gone or index in unlinked or field(items[index], "id") is None:
                        continue
                    if kind(items[index]) in _ID_OPTIONAL:
                        unlinked[index] = without_id(items[index])
                    else:
                        gone[index] = NO_REASONING
    return Changes(gone, {index: item for index, item in unlinked.items() if index not in gone})


def without_id(item: TResponseInputItem) -> TResponseInputItem:
    fields = cast(dict[str, Any], item)
    return cast(TResponseInputItem, {name: value for name, value in fields.items() if name != "id"})


def may_lose_id(item: TResponseInputItem) -> bool:
    return is_written_by_model(item) and kind(item) in _ID_OPTIONAL and field(item, "id") is not None


def without_part(item: TResponseInputItem, name: str, index: int, text: str) -> TResponseInputItem | None:
    """The item with `text` in the place of one part of its content or output; None if there is no such part."""
    parts = field(item, name)
    if not isinstance(parts, list) or not 0 <= index < len(parts) or name not in ("content", "output"):
        return None
    part = {"type": "output_text" if field(item, "role") == "assistant" else "input_text", "text": text}
    return cast(TResponseInputItem, {**cast(dict[str, Any], item), name: [*parts[:index], part, *parts[index + 1 :]]})


def _broken(
    index: int,
    item: TResponseInputItem,
    items: Sequence[TResponseInputItem],
    partners: Mapping[int, int],
    programs: Mapping[object, int],
    gone: Collection[int],
    waits_from: int | None,
) -> str | None:
    what, partner = kind(item), partners.get(index)
    if what in CALLS and (partner is None or partner in gone):
        return NO_CALL
    waits = waits_from is not None and index >= waits_from
    if what in OUTPUTS and ((partner is None and not waits) or partner in gone):
        return NO_OUTPUT
    caller = field(item, "caller")
    if isinstance(caller, dict) and caller.get("type") == "program":
        program = programs.get(caller.get("caller_id"))
        if program is None or program in gone:
            return NO_CALL
    return None


def _partners(items: Sequence[TResponseInputItem]) -> dict[int, int]:
    """Calls and their outputs, both by the index of the other."""
    waiting: dict[tuple[str, object], list[int]] = {}
    partners = {}
    for index, item in enumerate(items):
        what = kind(item)
        if what in OUTPUTS:
            waiting.setdefault((what, _name_of(item)), []).append(index)
        elif what in CALLS and (calls := waiting.get((CALLS[what], _name_of(item)))):
            # In turn: a tool search that the API carried out has no name.
            call = calls.pop(0)
            partners[call], partners[index] = index, call
    return partners


def _name_of(item: TResponseInputItem) -> object:
    """What a call and its output have in common."""
    match kind(item):
        case "mcp_approval_request":
            name = field(item, "id")
        case "mcp_approval_response":
            name = field(item, "approval_request_id")
        case "local_shell_call_output":
            name = field(item, "call_id") or field(item, "id")  # the API's own schema has it as the id
        case _:
            name = field(item, "call_id")
    return name if isinstance(name, str) else None


def _programs(items: Sequence[TResponseInputItem]) -> dict[object, int]:
    return {field(item, "call_id"): index for index, item in enumerate(items) if kind(item) == "program"}


def _followers(items: Sequence[TResponseInputItem]) -> Iterator[tuple[int, list[int]]]:
    """Each reasoning, and what the model wrote right after it."""
    for start, item in enumerate(items):
        if kind(item) != "reasoning":
            continue
        index, written = start + 1, list[int]()
        while index < len(items) and kind(items[index]) == "reasoning":
            index += 1
        while index < len(items) and is_written_by_model(items[index]):
            written.append(index)
            index += 1
        yield start, written
