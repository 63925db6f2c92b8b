"""Who is calling? This file is yours: no update of the template touches it. What it calls is checked in `identity.py`.

As it stands, the settings decide: with WEB_JWT_SECRET or WEB_JWKS_URL a token's `sub` is the user; with WEB_API_KEY
there is one user. A site with a sign-in of its own returns the user of its cookie instead. Behind a gateway that signs
users in, return the header that it sets, and let nobody but the gateway reach the service.
"""

from __future__ import annotations

from fastapi import Request

from ..settings import Settings
from .identity import user_by_settings


async def user_of(request: Request, settings: Settings) -> str:
    """The id of the user whose request this is.

    Raises:
        Problem: 401 if that is not known.
    """
    return await user_by_settings(request, settings)
