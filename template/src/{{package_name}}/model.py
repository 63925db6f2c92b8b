"""Which model answers: the one that OPENAI_API_KEY pays for, or the offline one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents import set_tracing_disabled, set_tracing_export_api_key
from agents.models.default_models import get_default_model
from agents.models.interface import Model
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI

from .offline import OfflineModel
from .settings import Settings

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"


@asynccontextmanager
async def opened_model(settings: Settings) -> AsyncIterator[Model]:
    """The model for the turns of this process; says so if it is the offline one. Closes its connections."""
    key = settings.openai_api_key
    if key is None or not key.get_secret_value():
        set_tracing_disabled(True)
        logger.warning("OPENAI_API_KEY is not set: the offline model answers. Put a key into .env for a real one.")
        yield OfflineModel()
        return
    if settings.openai_base_url is None:
        set_tracing_export_api_key(key.get_secret_value())
    else:
        # Traces go to OpenAI whatever the base URL is, and would take the conversation and the key with them.
        set_tracing_disabled(True)
    # Without a URL the client would take the variable itself, and an empty one (a bare line in .env) for an address.
    async with AsyncOpenAI(api_key=key.get_secret_value(), base_url=settings.openai_base_url or OPENAI) as client:
        yield OpenAIResponsesModel(model=settings.openai_model or get_default_model(), openai_client=client)
