"""What every request has to keep to, before anything else looks at it: host, size, type; and what browsers are told."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem

PROBES = ("/livez", "/readyz")
"""Load balancers ask them by the address of the machine."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: https:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CLOSE = {"Connection": "close"}
"""The rest of a body that is too large is not read."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses what is not for this service.

    Args:
        hosts: Names by which it may be asked for; "*": any. A page elsewhere can make its own name point here.
        max_bytes: Of a body.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], max_bytes: int) -> None:
        self._app, self._hosts, self._max_bytes = app, {host.lower() for host in hosts}, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._problem(scope)
        if refused is not None:
            await refused.response()(scope, receive, send)
            return
        size, begun = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise self._too_large()
            return message

        async def told(message: Message) -> None:
            nonlocal begun
            if size > self._max_bytes and not begun:
                return  # what reads bodies makes an error of its own of it
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, counted, told)
        finally:
            if size > self._max_bytes and not begun:
                size = 0
                await self._too_large().response()(scope, receive, told)

    def _problem(self, scope: Scope) -> Problem | None:
        headers, path = Headers(scope=scope), scope["path"].removeprefix(scope.get("root_path", ""))
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if path not in PROBES and "*" not in self._hosts and host not in self._hosts:
            return Problem(400, "This host name is not served here. Name it in WEB_ALLOWED_HOSTS.", code="unknown_host")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:
            return self._too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if has_body and kind != "application/json":
            # What a form of another site can send is never JSON.
            return Problem(415, "Send JSON: `Content-Type: application/json`.")
        return None

    def _too_large(self) -> Problem:
        return Problem(413, f"The request has more than {self._max_bytes:,} bytes (WEB_MAX_BODY_BYTES).", headers=CLOSE)
