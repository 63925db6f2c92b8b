"""What can go wrong with a request, in the shape of OpenAI's errors, which their clients turn into exceptions."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..conversation.edit import NothingToEdit
from ..conversation.turn import ApprovalPending, SessionBusy, TurnFailed, TurnRefused
from ..sessions import SessionStoreError, StoreUnavailable
from ..sessions.errors import InvalidSessionId, ItemTooLarge, LeaseLost

logger = logging.getLogger(__name__)

NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients repeat what failed with 409 or 500, unless they are told not to."""
BUSY_SECONDS = 2


class Problem(Exception):
    """A request that cannot be answered. The message says what to do.

    Args:
        param: Which field of the request is meant.
        code: A word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def problem_of(error: Exception) -> Problem:
    """The answer to what an operation raised."""
    match error:
        case Problem():
            return error
        case SessionBusy():
            wait = {"Retry-After": str(BUSY_SECONDS)}
            return Problem(409, str(error), code="session_busy", headers=wait)
        case ApprovalPending():
            return Problem(409, str(error), code="approval_pending", headers=NO_RETRY)
        case TurnRefused():
            return Problem(409, str(error), code="approval_gone", headers=NO_RETRY)
        case TurnFailed():
            return Problem(500, str(error), code="turn_failed", headers=NO_RETRY)
        case LeaseLost():
            return Problem(409, "The turn was stopped from elsewhere.", code="stopped", headers=NO_RETRY)
        case ItemTooLarge():
            return Problem(413, str(error), code="item_too_large")
        case NothingToEdit() | InvalidSessionId():
            return Problem(400, str(error))
        case StoreUnavailable():
            logger.error("%s", error)
            return Problem(503, "The conversations cannot be reached now. Try again.", code="store_unavailable")
        case RequestValidationError():
            return _of_fields(error)
        case HTTPException():
            return Problem(error.status_code, str(error.detail), headers=error.headers)
    logger.error("A request failed.", exc_info=None if isinstance(error, SessionStoreError) else error)
    if isinstance(error, SessionStoreError):
        logger.error("%s", error)
    return Problem(500, "The service failed. Its log says why.", code="internal_error", headers=NO_RETRY)


def handle_problems(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return problem_of(error).response()

    kinds = (Problem, TurnRefused, TurnFailed, SessionStoreError, RequestValidationError, HTTPException, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, answer)


def _of_fields(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Problem(400, "The body is not JSON.")
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return Problem(400, f"{name or 'The body'}: {first['msg']}.", param=name or None)
