"""The model that OPENAI_API_KEY and OPENAI_BASE_URL name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from agents import set_tracing_disabled, set_tracing_export_api_key
from agents.models.default_models import get_default_model
from agents.models.interface import Model
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI

from ..sessions import SettingMissing
from ..settings import Settings

OPENAI = "https://api.openai.com/v1"
NO_KEY = "no-key"
"""What is sent to a server at OPENAI_BASE_URL without a key."""


@asynccontextmanager
async def connect_model(settings: Settings) -> AsyncIterator[Model]:
    """The model for the turns of this process. Closes its connections.

    Raises:
        SettingMissing: Both OPENAI_API_KEY and OPENAI_BASE_URL are missing, or one of them cannot be used.
    """
    key, address = settings.model_key, address_of(settings)
    if key is None and address is None:
        raise SettingMissing(
            "OPENAI_API_KEY is not set. Set it: the offline model exists only in a checkout of the project."
        )
    if address is None and key is not None:
        set_tracing_export_api_key(key.get_secret_value())
    else:
        # Traces go to OpenAI whatever the base URL is, and would take the conversation and the key with them.
        set_tracing_disabled(True)
    name = (settings.openai_model or "").strip() or get_default_model()
    # Without a URL the client would take the variable itself, and an empty one (a bare line in .env) for an address.
    # The client requires a key; many self-hosted servers ignore it.
    key_text = NO_KEY if key is None else key.get_secret_value()
    async with AsyncOpenAI(api_key=key_text, base_url=address or OPENAI) as client:
        if settings.openai_api == "chat_completions":
            yield OpenAIChatCompletionsModel(model=name, openai_client=client)
        else:
            yield OpenAIResponsesModel(model=name, openai_client=client)


def address_of(settings: Settings) -> str | None:
    """The server that OPENAI_BASE_URL names, if it does.

    Raises:
        SettingMissing: It is not an address of a server. The message does not show it: it may contain a password.
    """
    address = (settings.openai_base_url or "").strip()
    try:
        url = urlsplit(address)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0 and address.isprintable()
    except ValueError:  # the port is not a number, or a bracket is open
        usable = False
    if address and (not usable or " " in address):
        raise SettingMissing("OPENAI_BASE_URL is not an address of a server. Write it as https://host/v1.")
    return address or None
