"""Whatever a history contains and wherever it is cut: the API takes what the model gets to see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from agents import Agent, Model, set_tracing_disabled
from agents.items import TResponseInputItem

from my_agent.conversation.history import history_settings, history_window, tokens_of, window
from my_agent.conversation.items import opens
from my_agent.conversation.turn import run_turn
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionStore
from proof.support.helpers import answer, anything, texts, user
from proof.support.histories import IMAGE, History
from proof.support.model_input import kind, refusals

SEEDS = range(40)
NEW = user("new")


def seen(history: History, max_items: int, max_tokens: int | None = None) -> list[TResponseInputItem]:
    kept = window(history.items, max_items, max_tokens)
    return [*(kept or []), NEW]


def last_turn(items: list[TResponseInputItem]) -> list[TResponseInputItem]:
    places = [index for index, item in enumerate(items) if opens(item)]
    return items[places[-1] :] if places else []


@pytest.mark.parametrize("seed", SEEDS)
def test_no_window_of_items_is_refused(seed: int) -> None:
    history = History(seed).grow(12)
    for max_items in range(1, len(history.items) + 2):
        kept = seen(history, max_items)
        assert refusals(kept, history.reasoning_of) == [], max_items
        assert len(kept) <= max(max_items, len(last_turn(history.items))) + 2  # the summary, and what is new


@pytest.mark.parametrize("seed", SEEDS)
def test_no_window_of_tokens_is_refused(seed: int) -> None:
    history = History(seed).grow(12)
    for max_tokens in (1, 50, 200, 500, 1000, 2000, 5000, 10_000, 10**6):
        for max_items in (7, 1000):
            kept = seen(history, max_items, max_tokens)
            assert refusals(kept, history.reasoning_of) == [], (max_items, max_tokens)
            summary = sum(tokens_of(item) for item in kept if kind(cast(Any, item)) == "compaction")
            most = max(max_tokens, sum(map(tokens_of, last_turn(history.items))) + summary)
            assert sum(map(tokens_of, kept[:-1])) <= most


@pytest.mark.parametrize("seed", SEEDS)
def test_however_far_a_conversation_has_come_the_next_message_can_be_sent(seed: int) -> None:
    history = History(seed)
    for _ in range(15):
        history.grow(1)
        for max_items, max_tokens in ((1, None), (5, None), (20, 400), (1000, None)):
            assert refusals(seen(history, max_items, max_tokens), history.reasoning_of) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_summary_and_the_newest_message_are_always_seen(seed: int) -> None:
    items = History(seed).grow(12).items
    summaries = [item for item in items if item.get("type") == "compaction"]
    for max_items, max_tokens in ((1, None), (6, None), (1000, 100), (1000, 3000)):
        kept = window(items, max_items, max_tokens) or []
        assert [item for item in kept if item in summaries][-1:] == summaries[-1:]
        assert [item for item in items if opens(item)][-1] in kept


def test_histories_that_are_cut_anywhere_are_refused() -> None:
    """The validator and the histories can fail: what is cut by count, and what is not cut at all."""
    cuts = whole = 0
    for seed in SEEDS:
        history = History(seed).grow(12)
        tails = [history.items[-limit:] for limit in range(1, len(history.items))]
        cuts += any(refusals(tail, history.reasoning_of) for tail in tails)
        whole += bool(refusals(history.items, history.reasoning_of))
    assert cuts == len(SEEDS)
    assert whole > len(SEEDS) / 2


def test_a_call_that_waits_goes_without_its_finished_sibling() -> None:
    both = [
        user("a"),
        anything(type="reasoning", id="rs_1", summary=[]),
        anything(type="function_call", id="fc_1", call_id="waits", name="t", arguments="{}"),
        anything(type="function_call", id="fc_2", call_id="done", name="t", arguments="{}"),
        anything(type="function_call_output", call_id="done", output="sent the mail"),
    ]
    assert window(both, 100) == [both[0], both[1], both[3], both[4]]


# ── Tokens ──────────────────────────────────────────────────────────────────


def test_an_inlined_image_does_not_count_by_its_bytes() -> None:
    part = {"type": "input_image", "image_url": IMAGE * 1000}
    image = tokens_of(anything(role="user", content=[part]))
    assert 1000 < image < 2000
    assert tokens_of(anything(role="user", content=[part, part])) > 1.8 * image
    assert tokens_of(anything(type="image_generation_call", id="ig", status="completed", result="iVBO" * 10**6)) < 2000


def test_words_count_by_their_bytes() -> None:
    assert 1000 <= tokens_of(user("word" * 1000)) < 1020
    assert tokens_of(user("語" * 1000)) > 700
    assert tokens_of(user("\ud800" * 1000)) > 1000  # half a surrogate pair is written as six characters


# ── What is read ────────────────────────────────────────────────────────────


async def test_a_read_fetches_what_the_window_needs(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = store.session("s")
    await session.add_items([item for n in range(300) for item in (user(f"question {n}" * 20), answer(f"{n}" * 200))])
    limits: list[int | None] = []
    tail = store.tail

    async def counted(ref: Any, limit: int | None) -> list[str]:
        limits.append(limit)
        return await tail(ref, limit)

    monkeypatch.setattr(store, "tail", counted)
    read = await session.get_items(history_settings(200, 1000).limit)
    seen = await cast(Any, history_window(session, 200, 1000)(read, [NEW]))
    assert limits == [42]
    assert 5 < len(seen) < 42


async def test_short_items_are_read_further_back_until_the_window_is_full(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(f"{number}") for number in range(500)])
    read = await session.get_items(history_settings(100, 500).limit)
    seen = await cast(Any, history_window(session, 100, 500)(read, [NEW]))
    expected = window(await session.get_items(), 100, 500)
    assert seen == [*(expected or []), NEW]
    assert len(seen) > 40
    assert texts(read[:-1])[0] == str(500 - len(read)), "the Runner would store again what it did not read"


class Listening(OfflineModel):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.inputs: list[list[TResponseInputItem]] = []

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.inputs.append(list(kwargs["input"] if "input" in kwargs else args[1]))
        async for event in super().stream_response(*args, **kwargs):
            yield event


@pytest.mark.parametrize("max_items", [1, 4, 15, 200])
@pytest.mark.parametrize("seed", range(4))
async def test_a_turn_sends_what_the_api_takes_and_stores_only_what_is_new(
    store: SessionStore, seed: int, max_items: int
) -> None:
    set_tracing_disabled(True)
    history, model = History(seed).grow(12), Listening()
    session = store.session("s")
    await session.add_items(history.items)
    agent = Agent[Any](name="Assistant", model=cast(Model, model))
    async for _ in run_turn(agent, session, "What is my name?", max_items=max_items):
        pass
    (sent,) = model.inputs
    assert refusals(sent, history.reasoning_of) == []
    stored = await session.get_items()
    assert stored[: len(history.items)] == history.items
    assert texts(stored[len(history.items) :])[:1] == ["What is my name?"]
    assert len(stored) == len(history.items) + 2
