"""Which model answers, and what is told to whom: a trace must not carry a conversation to a third party."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import set_tracing_disabled, set_tracing_export_api_key, trace
from agents.models.default_models import get_default_model
from agents.models.openai_responses import OpenAIResponsesModel
from agents.tracing.processors import default_exporter
from agents.tracing.traces import NoOpTrace
from pydantic import SecretStr

from my_agent.app import open_model
from my_agent.settings import Settings

KEY = SecretStr("a-key-for-the-test")


@pytest.fixture(autouse=True)
def tracing_as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_AGENTS_DISABLE_TRACING", raising=False)
    set_tracing_disabled(False)
    yield
    set_tracing_disabled(True)
    set_tracing_export_api_key("")


def traced() -> bool:
    return not isinstance(trace("test"), NoOpTrace)


async def test_with_a_key_openai_answers_and_gets_the_traces() -> None:
    async with open_model(Settings(openai_api_key=KEY)) as model:
        assert isinstance(model, OpenAIResponsesModel)
        assert model.model == get_default_model()
        assert model._get_client().api_key == KEY.get_secret_value()
        assert traced()
        assert default_exporter().api_key == KEY.get_secret_value()


async def test_another_server_answers_and_openai_gets_no_traces() -> None:
    settings = Settings(openai_api_key=KEY, openai_base_url="http://127.0.0.1:1/v1", openai_model="its-model")
    async with open_model(settings) as model:
        assert isinstance(model, OpenAIResponsesModel)
        assert model.model == "its-model"
        assert str(model._get_client().base_url) == "http://127.0.0.1:1/v1/"
        assert not traced()


async def test_the_offline_model_leaves_no_traces() -> None:
    async with open_model(Settings()):
        assert not traced()


async def test_an_empty_base_url_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `OPENAI_BASE_URL=` in an env file gives it to a container."""
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    async with open_model(Settings(openai_api_key=KEY)) as model:
        assert isinstance(model, OpenAIResponsesModel)
        assert str(model._get_client().base_url) == "https://api.openai.com/v1/"
        assert traced()


async def test_the_connections_are_closed_at_the_end() -> None:
    async with open_model(Settings(openai_api_key=KEY)) as model:
        assert isinstance(model, OpenAIResponsesModel)
        assert not model._get_client().is_closed()
    assert model._get_client().is_closed()
