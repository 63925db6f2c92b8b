"""What the API refused is left out of the next try, and what cannot be sent without it as well."""

from __future__ import annotations

import random
from typing import Any, cast

import openai
import pytest
from agents.items import TResponseInputItem
from openai import AsyncOpenAI, _exceptions

from my_agent.conversation.history import window
from my_agent.conversation.refusals import Repaired, without_refused
from proof.support.helpers import answer, anything, user
from proof.support.histories import History
from proof.support.model_input import kind, refusals

httpx: Any = getattr(_exceptions, "httpx2", None) or getattr(_exceptions, "httpx")  # noqa: B009
"""The HTTP library of the OpenAI client, which changed its name."""
NEW = user("And now?")
DEAD = "https://files.example.com/old.png?sig=secret"
NEWER = "https://files.example.com/new.png?sig=secret"
ELSEWHERE = "https://other.example.com/a.png"


def refused(message: str, param: str | None = "input", code: str | None = None, status: int = 400) -> openai.APIError:
    """The error as the client makes it of an answer."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    response = httpx.Response(status, json=body, request=httpx.Request("POST", "https://api.openai.com/v1/responses"))
    made = AsyncOpenAI(api_key="sk-test")._make_status_error_from_response(cast(Any, response))
    assert isinstance(made, openai.APIStatusError)
    return made


def picture(url: str, text: str = "Look") -> TResponseInputItem:
    image = {"type": "input_image", "detail": "auto", "image_url": url}
    return anything(role="user", content=[{"type": "input_text", "text": text}, image])


def reasoning(name: str, sealed: str | None = None) -> TResponseInputItem:
    return anything(type="reasoning", id=name, summary=[], **({} if sealed is None else {"encrypted_content": sealed}))


def call(name: str) -> TResponseInputItem:
    return anything(type="function_call", id=f"fc_{name}", call_id=name, name="t", arguments="{}")


def output(name: str, text: Any = "done") -> TResponseInputItem:
    return anything(type="function_call_output", call_id=name, output=text)


def said(name: str) -> TResponseInputItem:
    return cast(TResponseInputItem, {**answer("yes"), "id": name})


def repaired(error: Exception, items: list[TResponseInputItem], **options: Any) -> Repaired:
    before = [dict(item) for item in items]
    done = without_refused(error, items, **options)
    assert done is not None
    assert items == before, "the caller's items were changed"
    assert done.what
    assert not any(word in " ".join(done.what) for word in ("secret", "Look", "done"))
    return done


def urls(items: list[TResponseInputItem]) -> list[str]:
    parts = [part for item in items for part in cast(Any, item).get("content", []) if isinstance(part, dict)]
    return [part["image_url"] for part in parts if "image_url" in part]


# ── Images ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        (f"Timeout while downloading {DEAD}.", "url", "invalid_value"),
        (f"Error while downloading {DEAD}. Upstream status code: 404.", "url", "invalid_value"),
        ("Error while downloading file.", "input[0].content[1].image_url", "invalid_image_url"),
        ("The image data you provided does not represent a valid image.", "input[0].content[1]", "image_parse_error"),
    ],
)
def test_a_dead_image_becomes_a_note(message: str, param: str, code: str) -> None:
    items = [picture(DEAD), answer("Nice"), picture(ELSEWHERE), answer("Nice"), NEW]
    done = repaired(refused(message, param, code), items)
    assert "can no longer be loaded" in str(done.items[0])
    assert "Look" in str(done.items[0])
    if DEAD in message:
        assert (urls(done.items), done.items[1:]) == ([ELSEWHERE], items[1:])
        assert done.what == ["Replaced by a note: 1 image or file."]


def test_older_images_of_the_same_host_go_with_a_dead_one() -> None:
    items = [picture(NEWER), picture(ELSEWHERE), picture(DEAD), picture(NEWER), NEW]
    done = repaired(refused(f"Error while downloading {DEAD}.", "url", "invalid_value"), items)
    assert urls(done.items) == [ELSEWHERE, NEWER]


def test_a_dead_image_in_a_tool_output_is_replaced_and_a_screenshot_goes_with_its_call() -> None:
    part = {"type": "input_image", "image_url": DEAD}
    screen = {"type": "computer_screenshot", "image_url": DEAD}
    items = [
        user("a"), call("a"), output("a", [part]),
        reasoning("rs_1"), anything(type="computer_call", id="cu_1", call_id="b", status="completed"),
        anything(type="computer_call_output", call_id="b", output=screen), answer("done"), NEW,
    ]  # fmt: skip
    done = repaired(refused(f"Error while downloading {DEAD}.", "url", "invalid_value"), items)
    assert [kind(cast(Any, item)) for item in done.items] == [
        "message", "function_call", "function_call_output", "message", "message"
    ]  # fmt: skip
    assert DEAD not in str(done.items)


def test_what_is_wrong_with_the_new_message_is_left_to_the_person() -> None:
    items = [picture(DEAD), answer("Nice"), picture(NEWER)]
    assert without_refused(refused(f"Error while downloading {NEWER}.", "url", "invalid_value"), items) is None
    assert without_refused(refused("Invalid image.", "input[2].content[1].image_url"), items) is None
    error = refused(f"Error while downloading {DEAD}.", "url")
    assert without_refused(error, [user("a"), picture(DEAD), NEW], new_messages=2) is None
    # The message of a turn that failed is stored, and not new any more.
    done = repaired(refused(f"Error while downloading {DEAD}.", "url"), [picture(DEAD), NEW])
    assert urls(done.items) == []


# ── Reasoning ───────────────────────────────────────────────────────────────

SEALED = [user("a"), reasoning("rs_1", "gAAAone=="), call("a"), call("b"), output("a"), output("b"),
          reasoning("rs_2", "gAAAtwo=="), said("msg_1"), NEW]  # fmt: skip
REASONING_OF = {"fc_a": "rs_1", "fc_b": "rs_1", "msg_1": "rs_2"}


@pytest.mark.parametrize(
    "message",
    [
        "The encrypted content for item rs_1 could not be verified.",
        "The encrypted content gAAA...ne== could not be verified.",
        "The encrypted content - **... could not be verified. Reason: Encrypted content could not be decrypted.",
    ],
)
def test_reasoning_that_cannot_be_decrypted_goes_and_what_was_said_stays(message: str) -> None:
    done = repaired(refused(message, None, "invalid_encrypted_content"), SEALED)
    assert [kind(cast(Any, item)) for item in done.items].count("reasoning") == 0
    assert len(done.items) == len(SEALED) - 2
    assert refusals(done.items, REASONING_OF) == []
    assert done.what == ["Left out: 2 reasoning items.", "Sent without an id: 3 items."]


def test_a_summary_goes_only_if_it_is_the_one_that_was_refused() -> None:
    summary = anything(type="compaction", id="cmp_1", encrypted_content="gAAAsum==")
    items = [summary, *SEALED]
    error = refused("The encrypted content for item rs_1 could not be verified.", None, "invalid_encrypted_content")
    assert repaired(error, items).items[0] == summary
    error = refused("The encrypted content gAAA...um== could not be verified.", None, "invalid_encrypted_content")
    assert summary not in repaired(error, items).items


def test_a_hosted_call_that_must_keep_its_id_goes_with_its_reasoning() -> None:
    search = anything(type="web_search_call", id="ws_1", status="completed")
    items = [user("a"), reasoning("rs_1", "x"), search, said("msg_1"), NEW]
    error = refused("The encrypted content for item rs_1 could not be verified.", None, "invalid_encrypted_content")
    assert [cast(Any, item).get("id") for item in repaired(error, items).items] == [None, None, None]


def test_reasoning_without_what_follows_goes() -> None:
    items = [user("a"), reasoning("rs_1"), user("b"), reasoning("rs_2"), said("msg_1"), NEW]
    error = refused("Item 'rs_1' of type 'reasoning' was provided without its required following item.")
    done = repaired(error, items)
    assert done.items == [items[0], *items[2:]]


def test_an_item_without_its_reasoning_is_sent_without_its_id() -> None:
    items = [user("a"), call("a"), call("b"), output("a"), output("b"), reasoning("rs_2"), said("msg_1"), NEW]
    error = refused("Item 'fc_a' of type 'function_call' was provided without its required 'reasoning' item: 'rs_1'.")
    done = repaired(error, items)
    assert len(done.items) == len(items)
    assert refusals(done.items, REASONING_OF) == []
    assert done.items[6] == items[6]


def test_what_the_api_does_not_remember_is_sent_without_ids() -> None:
    items = [user("a"), reasoning("rs_1"), call("a"), output("a"), reasoning("rs_2", "sealed"), said("msg_1"), NEW]
    error = refused(
        "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.", "input", None, 404
    )
    done = repaired(error, items)
    assert [cast(Any, item).get("id") for item in done.items] == [None, None, None, "rs_2", None, None]


# ── Calls and outputs ───────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["function call", "custom tool call", "local shell call"])
def test_a_call_without_its_output_goes_with_its_reasoning(what: str) -> None:
    calls = {
        "function call": "function_call",
        "custom tool call": "custom_tool_call",
        "local shell call": "local_shell_call",
    }
    one = anything(type=calls[what], id="fc_x", call_id="call_x")
    items = [user("a"), reasoning("rs_1"), one, user("b"), call("fine"), output("fine"), answer("c"), NEW]
    done = repaired(refused(f"No tool output found for {what} call_x."), items)
    assert done.items == [items[0], *items[3:]]


def test_an_output_without_its_call_goes() -> None:
    items = [user("a"), output("call_x"), call("fine"), output("fine"), answer("c"), NEW]
    done = repaired(refused("No tool call found for function call output with call_id call_x."), items)
    assert done.items == [items[0], *items[2:]]
    assert done.what == ["Left out: 1 other item."]


# ── Long strings ────────────────────────────────────────────────────────────

TOO_LONG = (
    "string too long. Expected a string with maximum length 10485760, but got a string with length 11000000 instead."
)
HUGE = "x" * 11_000_000


@pytest.mark.parametrize("where", ["text", "part", "file", "arguments"])
def test_a_string_that_is_too_long_is_cut_or_left_out(where: str) -> None:
    items = {
        "text": [user("a"), call("a"), output("a", HUGE), answer("b"), NEW],
        "part": [user("a"), call("a"), output("a", [{"type": "input_text", "text": HUGE}]), answer("b"), NEW],
        "file": [user("a"), call("a"), output("a", [{"type": "input_image", "image_url": "data:" + HUGE}]), NEW],
        "arguments": [user("a"), cast(Any, {**call("a"), "arguments": HUGE}), output("a"), answer("b"), NEW],
    }[where]
    error = refused(f"Invalid 'input[2].output': {TOO_LONG}", "input[2].output", "string_above_max_length")
    done = repaired(error, items)
    assert refusals(done.items, {}) == []
    assert len(done.items) == (3 if where == "arguments" else len(items))
    assert done.items[-1] == NEW


def test_a_new_message_that_is_too_long_is_left_to_the_person() -> None:
    error = refused(f"Invalid 'input[1].content': {TOO_LONG}", "input[1].content", "string_above_max_length")
    assert without_refused(error, [user("a"), user(HUGE)]) is None


# ── Everything else ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        ValueError("input[0]"),
        openai.APIConnectionError(request=cast(Any, httpx.Request("POST", "https://api.openai.com"))),
        refused("Unknown parameter.", "tools[0].parameters", "unknown_parameter"),
        refused("Too long.", "input", "context_length_exceeded"),
        refused("The model does not exist.", "model", "model_not_found", 404),
        refused("Slow down: input[0].content", "input[0].content", "rate_limit_exceeded", 429),
        refused("Invalid value.", "input[99].content[0]", "invalid_value"),
        refused("Item 'rs_9' of type 'reasoning' was provided without its required following item."),
    ],
)
def test_other_errors_are_not_repaired(error: Exception) -> None:
    assert without_refused(error, [picture(DEAD), answer("b"), NEW]) is None


def test_an_error_in_the_middle_of_a_stream_counts_too() -> None:
    body = {
        "message": "The encrypted content for item rs_1 could not be verified.",
        "code": "invalid_encrypted_content",
    }
    error = openai.APIError("failed", cast(Any, httpx.Request("POST", "https://api.openai.com")), body=body)
    assert without_refused(error, SEALED) is not None


def test_something_refused_anywhere_leaves_a_request_that_is_taken() -> None:
    """Each item of many histories is refused in turn: what is left is whole, and the API takes it."""
    for seed in range(12):
        history = History(seed).grow(8)
        items = [*(window(history.items, 1000) or []), NEW]
        for index, item in enumerate(items[:-1]):
            error = refused("Invalid value.", f"input[{index}]", "invalid_value")
            if (done := without_refused(error, items)) is not None:
                assert item not in done.items or items.count(item) > 1
                assert refusals(done.items, history.reasoning_of) == []
        sealed = [cast(Any, item)["id"] for item in items if kind(cast(Any, item)) == "reasoning"]
        if sealed:
            name = random.Random(seed).choice(sealed)
            error = refused(
                f"The encrypted content for item {name} could not be verified.", None, "invalid_encrypted_content"
            )
            assert refusals(repaired(error, items).items, history.reasoning_of) == []


@pytest.mark.parametrize("odd", [["input"], {"a": 1}, 7, True])
def test_fields_of_an_error_may_be_anything(odd: Any) -> None:
    """Servers of others fill them as they like."""
    assert without_refused(refused("No.", param=odd, code=odd), [user("old"), NEW]) is None
