"""Reaching Supabase: the settings, what its keys and tokens say of themselves."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import urlsafe_b64decode
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator

from ..errors import SettingMissing, forgets_locals, how_to
from ..postgres.connection import PostgresSettings
from ..settings import StoreSettings

WHERE_KEYS_ARE = "Project settings → API keys; for a local stack, `supabase status` prints them"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

SERVER_KEY = r"[A-Za-z0-9_-]{43}"
"""256 random bits, as `secrets.token_urlsafe(32)` writes them."""

Rights = Literal["secret", "publishable", "unknown"]


class DatabaseSettings(PostgresSettings):
    """The project's database itself, for changing its schema."""

    variable: ClassVar[str] = "SUPABASE_DB_URL"


class SupabaseSettings(StoreSettings):
    """Which project, with which key, and how hard it may be used."""

    supabase_url: str | None = Field(default=None, repr=False)
    """https://<project>.supabase.co, or http://127.0.0.1:54321 for a local stack. Not shown: by mistake it may be the
    address of the database, with its password."""
    supabase_key: SecretStr | None = None
    """On a server the secret key (sb_secret_…, or the older service_role); elsewhere the publishable one."""
    supabase_server_key: SecretStr | None = None
    """Allows changes for signed-in users (`db server-key` makes one); a secret key needs none."""
    supabase_timeout_seconds: float = Field(default=30.0, gt=0)
    """Of one call: waiting for a free connection, connecting and the answer, together."""
    supabase_pool_max: int = Field(default=20, ge=1)
    """Connections per process, at most. Calls beyond it wait."""
    supabase_db_url: SecretStr | None = None
    """The database itself, postgresql://…; needed for `db upgrade` only."""
    database_schema: str = "public"
    """Only public: the schema that Supabase's API serves, with the rights that the migrations set there."""

    @field_validator("database_schema")
    @classmethod
    def _check_schema(cls, name: str) -> str:
        if name != "public":
            raise ValueError("Supabase has this app in the schema public; use a project for each app, or leave it out")
        return name

    @property
    @forgets_locals
    def url(self) -> str:
        """The project's address, without /rest/v1 and without a slash at the end.

        Raises:
            SettingMissing: SUPABASE_URL is not set, or not the address of a project.
        """
        if self.supabase_url is None:
            raise SettingMissing(
                "SUPABASE_URL is not set. Put https://<project>.supabase.co into .env (Project settings → Data API; "
                "for a local stack, `supabase status` prints it)."
            )
        try:
            url = urlsplit(self.supabase_url.strip())
            # A name and password would be shown in messages, a query would swallow the path of every call.
            usable = url.scheme in ("http", "https") and url.hostname and url.port != 0 and not url.query + url.fragment
            usable = usable and "@" not in url.path
        except ValueError:  # the port is not a number
            usable = False
        if not usable or not re.fullmatch(r"[\w.:\[\]-]+", url.netloc, re.ASCII) or not _fits_in_header(f"/{url.path}"):
            raise SettingMissing(
                "SUPABASE_URL is not the address of a project. Write https://<project>.supabase.co. "
                "(The address of the database, postgresql://…, goes into SUPABASE_DB_URL.)"
            )
        path = url.path.rstrip("/").removesuffix("/rest/v1")
        return urlunsplit((url.scheme, url.netloc, path, "", ""))

    @property
    @forgets_locals
    def key(self) -> str:
        """The key as it is sent.

        Raises:
            SettingMissing: SUPABASE_KEY is not set, or not a key of a project.
        """
        if self.supabase_key is None:
            raise SettingMissing(
                f"SUPABASE_KEY is not set. Put the secret key of your project into .env ({WHERE_KEYS_ARE})."
            )
        key = self.supabase_key.get_secret_value().strip()
        if not _fits_in_header(key):
            raise SettingMissing(f"SUPABASE_KEY holds characters that no key has. Copy it again ({WHERE_KEYS_ARE}).")
        if key.startswith("sbp_"):
            raise SettingMissing(
                f"SUPABASE_KEY is a personal access token, which manages accounts. Take a key of the project "
                f"({WHERE_KEYS_ARE})."
            )
        return key

    @property
    @forgets_locals
    def server_key(self) -> str | None:
        """The server's key as it is sent, if there is one.

        Raises:
            SettingMissing: SUPABASE_SERVER_KEY is not a key that `db server-key` made.
        """
        if self.supabase_server_key is None:
            return None
        key = self.supabase_server_key.get_secret_value().strip()
        if not re.fullmatch(SERVER_KEY, key):
            todo = how_to("db server-key", "Call `new_server_key()` from {package}.supabase.server_key")
            raise SettingMissing(f"SUPABASE_SERVER_KEY is not a server key. Copy it again. {todo} to make one.")
        return key

    @property
    def rights(self) -> Rights:
        """What the key says of itself: "secret" passes row-level security, "publishable" is for everybody's eyes."""
        if self.key.startswith("sb_secret_"):
            return "secret"
        if self.key.startswith("sb_publishable_"):
            return "publishable"
        roles: dict[Any, Rights] = {"service_role": "secret", "anon": "publishable"}
        return roles.get(claims_of(self.key).get("role"), "unknown")

    @property
    def database(self) -> DatabaseSettings:
        """The way to the database that `db upgrade` takes."""
        return DatabaseSettings(database_url=self.supabase_db_url, database_credentials=None)

    @property
    def where(self) -> str:
        """Host and port, for messages: the address without its secrets."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine."""
        return urlsplit(self.url).hostname in LOCAL_HOSTS


def deadline_of(settings: SupabaseSettings) -> float:
    """When a call ends that begins now, in the time of the running event loop."""
    return asyncio.get_running_loop().time() + settings.supabase_timeout_seconds


def subject_of(access_token: str) -> str:
    """The user that a token is for. Not verified here: the server does that at every call.

    Raises:
        SettingMissing: This is not a token of a signed-in user.
    """
    usable = isinstance(access_token, str) and _fits_in_header(access_token)
    subject = claims_of(access_token).get("sub") if usable else None
    if not isinstance(subject, str) or not subject:
        raise SettingMissing(
            "access_token is not a token of a signed-in user. Pass what Supabase Auth calls `session.access_token`; "
            "leave it out (None) only where the secret key may act for everybody."
        )
    return subject


def claims_of(token: str) -> dict[Any, Any]:
    """What a JSON web token says; nothing if this is none."""
    try:
        claims = json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _fits_in_header(text: str) -> bool:
    """An HTTP library would name the whole text in its error."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
