"""What goes wrong between the agent and its model, as a sentence that says what to do, and without the model's key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
from agents import InputGuardrailTripwireTriggered, MaxTurnsExceeded, OutputGuardrailTripwireTriggered

from ..sessions.errors import forget_locals

SHORTEST_KEY = 8
"""Local servers take any word as a key; one that is shorter than this may be a part of other words."""


def reason(error: Exception) -> str:
    """Why a turn broke off, in one line."""
    if isinstance(error, openai.APIStatusError) and (lacking := _lacking_api(error)):
        return lacking
    match error:
        case openai.AuthenticationError():
            return "The model's server refused the key, or asks for one. Check OPENAI_API_KEY."
        case openai.PermissionDeniedError() | openai.NotFoundError():
            return f"The model does not exist, or this key may not use it. Check OPENAI_MODEL. ({_line(error.message)})"
        case openai.RateLimitError():
            return "The model's server asks to wait: too many requests, or the quota is used up. Try again later."
        case openai.APITimeoutError() | openai.APIConnectionError():
            return "The model's server cannot be reached. Check the network, and OPENAI_BASE_URL if it is set."
        case openai.BadRequestError(code="context_length_exceeded"):
            return (
                "The conversation is too long for this model. Set or lower HISTORY_MAX_TOKENS, or begin a new session."
            )
        case openai.APIStatusError():
            advice = " Try again." if error.status_code >= 500 else ""
            return f"The model's server answered with an error ({error.status_code}).{advice} ({_line(error.message)})"
        case json.JSONDecodeError():
            return "The model's server answered with something unreadable. Check OPENAI_BASE_URL."
        case MaxTurnsExceeded():
            return "The agent went round in circles and was stopped. Ask in other words."
        case InputGuardrailTripwireTriggered() | OutputGuardrailTripwireTriggered():
            return "A guardrail of the agent stopped this turn."
    return f"The agent failed: {_line(str(error))}"


def forget_key(error: BaseException) -> None:
    """Remove the model's key from an error and its causes: their frames, their requests, and what the server said."""
    forget_locals(error)
    errors = list(_chain(error))
    requests = [request for each in errors if (request := _request(each)) is not None]
    keys = {request.headers.get("Authorization", "").removeprefix("Bearer ").strip() for request in requests}
    for request in requests:
        request.headers.pop("Authorization", None)
    for each in errors:
        for key in keys:
            if len(key) >= SHORTEST_KEY:
                each.args = _without(key, each.args)
                for name, value in list(vars(each).items()):
                    setattr(each, name, _without(key, value))


def _lacking_api(error: openai.APIStatusError) -> str | None:
    """For servers of others, which may have one API or the other."""
    request = _request(error)
    if request is None or request.url.host == "api.openai.com" or error.status_code not in (404, 405, 501):
        return None
    if error.status_code == 404 and "model" in f"{error.code} {error.message}".lower():
        return None
    status = f"HTTP {error.status_code}"
    if request.url.path.endswith("/responses"):
        return (
            f"The server at OPENAI_BASE_URL does not have the Responses API ({status}). "
            "Set OPENAI_API=chat_completions, or correct the address: most end in /v1."
        )
    return (
        f"The server at OPENAI_BASE_URL does not have the API of OPENAI_API=chat_completions ({status}). "
        "Correct the address: most end in /v1."
    )


def _chain(error: BaseException | None, seen: frozenset[int] = frozenset()) -> Iterator[BaseException]:
    if error is not None and id(error) not in seen:
        yield error
        for other in (error.__cause__, error.__context__):
            yield from _chain(other, seen | {id(error)})


def _request(error: BaseException) -> Any:
    """The HTTP request that failed, of whichever library; None if there was none."""
    try:
        request = getattr(error, "request", None)
    except RuntimeError:  # so the library says that there is none
        return None
    return request if hasattr(request, "headers") and hasattr(request, "url") else None


def _without(key: str, value: Any) -> Any:
    match value:
        case str():
            return value.replace(key, "…")
        case dict():
            return {name: _without(key, inner) for name, inner in value.items()}
        case list() | tuple():
            return type(value)(_without(key, inner) for inner in value)
    return value


def _line(text: str) -> str:
    """A text that may have several lines, on one."""
    return " ".join(text.split())
