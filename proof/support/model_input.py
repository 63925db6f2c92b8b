"""What the Responses API refuses in a list of input items, written from its rules and not from our code.

The rules are those of its error messages: "No tool call found for … output with call_id", "No tool output found for …
call", "Item 'rs_…' of type 'reasoning' was provided without its required following item", "Item 'msg_…' of type
'message' was provided without its required 'reasoning' item", "Duplicate item found with id", "string too long".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from agents.items import TResponseInputItem

LONGEST = 10_485_760
ANSWERED_BY = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
    "shell_call": "shell_call_output",
    "local_shell_call": "local_shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
    "mcp_approval_request": "mcp_approval_response",
}
BY_THE_API = {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}


def refusals(items: Sequence[TResponseInputItem], reasoning_of: Mapping[str, str]) -> list[str]:
    """Why the API would refuse these items; nothing if it takes them.

    Args:
        items: The input of one call.
        reasoning_of: What the API remembers: which reasoning came before an answer or a call, both by their ids.
    """
    all_ = [cast(dict[str, Any], item) for item in items]
    ids = [item["id"] for item in all_ if item.get("id") and kind(item) not in ANSWERED_BY.values()]
    found = [f"duplicate item {name}" for name, count in Counter(ids).items() if count > 1]
    for index, item in enumerate(all_):
        what, before, after = kind(item), all_[:index], all_[index + 1 :]
        if what in ANSWERED_BY.values():
            calls = [other for other in before if ANSWERED_BY.get(kind(other)) == what and key(other) == key(item)]
            if not calls:
                found.append(f"no call found for {what} {key(item)}")
        if what in ANSWERED_BY and not any(kind(o) == ANSWERED_BY[what] and key(o) == key(item) for o in after):
            found.append(f"no output found for {what} {key(item)}")
        if what == "reasoning":
            follower = next((other for other in after if kind(other) != "reasoning"), None)
            if follower is None or not from_model(follower):
                found.append(f"{item['id']} without its following item")
            elif reasoning_of.get(follower.get("id", ""), item["id"]) not in [item["id"], *trailing(before, after)]:
                found.append(f"{item['id']} is followed by an item of other reasoning")
        needed = reasoning_of.get(item.get("id", ""))
        if needed and needed not in [other.get("id") for other in before]:
            found.append(f"{item['id']} without its reasoning {needed}")
        caller = item.get("caller", {}).get("caller_id")
        if caller and not any(kind(other) == "program" and other["call_id"] == caller for other in before):
            found.append(f"{what} of a program that is missing")
        found += [f"string too long in item {index}" for text in strings(item) if len(text) > LONGEST]
    return found


def trailing(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[str]:
    """The ids of reasoning right before and right after: several may belong to one item."""
    for part in (reversed(before), after):
        for item in part:
            if kind(item) != "reasoning":
                break
            yield item["id"]


def kind(item: Mapping[str, Any]) -> str:
    return str(item.get("type", "message"))


def key(item: Mapping[str, Any]) -> object:
    """What a call and its output have in common."""
    if kind(item).startswith("mcp_approval"):
        return item.get("approval_request_id", item.get("id"))
    return item.get("call_id")


def from_model(item: Mapping[str, Any]) -> bool:
    if kind(item) == "message":
        return item.get("role") == "assistant"
    return kind(item) in ANSWERED_BY or kind(item) in BY_THE_API or kind(item) == "mcp_list_tools"


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)
