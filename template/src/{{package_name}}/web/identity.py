"""Who is calling: proofs that a request may carry, and how each is checked."""

from __future__ import annotations

import hmac
from functools import cache
from typing import Any

import jwt
from fastapi import Request
from jwt import PyJWKClient
from starlette.concurrency import run_in_threadpool

from ..settings import Settings
from .problems import Problem

SHARED = ["HS256", "HS384", "HS512"]
PUBLIC = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
"""Never both for one key: a public key would be taken for a shared secret."""
LEEWAY_SECONDS = 30


def unauthorized(message: str) -> Problem:
    return Problem(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def bearer(request: Request) -> str:
    """The token of the request.

    Raises:
        Problem: It has none.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthorized("Send a token: `Authorization: Bearer …`.")
    return token.strip()


def is_protected(settings: Settings) -> bool:
    """Whether the settings name a way to know users."""
    return any((settings.web_api_key, settings.web_jwt_secret, settings.web_jwks_url))


async def user_by_settings(request: Request, settings: Settings) -> str:
    """The user that the settings know: the subject of a token, "" with the one key or where nothing is protected.

    Raises:
        Problem: The proof is missing or wrong.
    """
    if settings.web_jwt_secret or settings.web_jwks_url:
        return await user_of_token(bearer(request), settings)
    if settings.web_api_key is not None:
        given, known = bearer(request), settings.web_api_key.get_secret_value()
        if not hmac.compare_digest(given.encode(), known.encode()):
            raise unauthorized("This is not the key of the service (WEB_API_KEY).")
    return ""


async def user_of_token(token: str, settings: Settings) -> str:
    """The subject of a JSON Web Token that is valid now.

    Raises:
        Problem: It is forged, expired, for somebody else, or names no user.
    """
    try:
        if settings.web_jwks_url:
            key: Any = (await run_in_threadpool(_keys(settings.web_jwks_url).get_signing_key_from_jwt, token)).key
            algorithms = PUBLIC
        else:
            secret = settings.web_jwt_secret
            key, algorithms = secret.get_secret_value() if secret else "", SHARED
        claims = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=settings.web_jwt_audience,
            issuer=settings.web_jwt_issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": True},
        )
    except jwt.PyJWKClientConnectionError as error:
        raise Problem(503, "The keys of the sign-in service cannot be reached now. Try again.") from error
    except jwt.PyJWTError as error:
        raise unauthorized("The token is not valid, or not any more. Sign in again.") from error
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject:
        raise unauthorized("The token names no user (`sub`).")
    return subject


@cache
def _keys(url: str) -> PyJWKClient:
    """Fetches public keys, and keeps them for five minutes."""
    return PyJWKClient(url, cache_keys=False, lifespan=300, timeout=5)
