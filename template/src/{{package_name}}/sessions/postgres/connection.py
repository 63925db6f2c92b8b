"""Reaching PostgreSQL: the settings, and a connection to one of the servers that they name."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil
from time import monotonic
from typing import Any, ClassVar, Literal

import asyncpg
from pydantic import Field, SecretStr, field_validator

from ..credentials import Credentials, ask, mark_asked, named_function
from ..errors import COMMAND, SchemaOutdated, SettingMissing, forget_locals, forgets_locals, how_to
from ..settings import StoreSettings
from .address import EXAMPLE, Login, PostgresAddress, parse_address
from .socket import keep_alive, tls_options

SCHEMA_VERSION = 20261127000001
"""The newest migration that this program was written for."""

OTHER_HOST_SECONDS = 5.0
"""How long a host may be silent before the next one is tried, if the address has no connect_timeout."""

# As texts: for an array of numbers asyncpg asks the server what that is, once on each connection, and turns the setting
# `jit` off and on around the question. Behind a transaction pooler it stays off if another connection turns it on.
OPENING_STATEMENT = "SELECT public.agent_session_open($1)"

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that asyncpg raises. A timeout is an OSError; a cut connection is at times an InternalClientError."""


class NoFreeConnection(TimeoutError):
    """All connections of the pool were in use until the deadline."""


class PostgresSettings(StoreSettings):
    """Where the database is, and how hard it may be used."""

    variable: ClassVar[str] = "DATABASE_URL"
    """Where the address comes from, for messages."""

    database_url: SecretStr | None = None
    """postgresql://user:password@host:5432/name; with ?sslmode=verify-full for TLS."""
    database_pool_max: int = Field(default=10, ge=1)
    """Connections per process, at most. Calls beyond it wait."""
    database_timeout_seconds: float = Field(default=30.0, gt=0)
    """For one call: waiting for a free connection, connecting, and its statement, together."""
    database_credentials: str | None = Field(default=None, repr=False)
    """An async function, as module:function, that returns user and password for each new connection.
    Not shown: by mistake it may be a user and a password."""
    database_pooler: Literal["auto", "transaction", "none"] = "auto"
    """Is a transaction pooler (PgBouncer, Supavisor) in between? auto: yes for port 6543 and ?pgbouncer=true."""
    database_schema: str = "public"
    """The PostgreSQL schema with the tables and functions of this app. Apps that share a database need one each."""

    @field_validator("database_schema")
    @classmethod
    def _check_schema(cls, name: str) -> str:
        # PostgreSQL cuts longer names, and keeps pg_ for itself.
        if name == "information_schema" or not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", name):
            raise ValueError("use 1 to 63 lower-case letters, digits and _, not beginning with a digit or pg_")
        return name

    @property
    @forgets_locals
    def address(self) -> PostgresAddress:
        """What the address says.

        Raises:
            SettingMissing: It is not set, or cannot be used.
        """
        # No frame that an error leaves behind may have the address, with its password, among its local variables.
        if self.database_url is None:
            raise SettingMissing(f"{self.variable} is not set. Put {EXAMPLE} into .env.")
        return parse_address(self.database_url.get_secret_value(), self.variable)

    @property
    def credentials(self) -> Credentials | None:
        """The function that `database_credentials` names.

        Raises:
            SettingMissing: The function does not exist.
        """
        return named_function(self.database_credentials, "DATABASE_CREDENTIALS")

    @property
    def behind_pooler(self) -> bool:
        """Whether the server may change between two statements, so that prepared statements and SET get lost."""
        if self.database_pooler != "auto":
            return self.database_pooler == "transaction"
        return self.address.pooler

    @property
    def where(self) -> str:
        """Hosts, ports and database, for messages: the address without its secrets."""
        return self.address.where


_PUBLIC = re.compile(r'(?:\bpublic|"public")\.(?=[\w"])', re.IGNORECASE)


@cache
def in_schema(sql: str, schema: str) -> str:
    """SQL of this app, which is written for the schema public, for another schema.

    Only qualified names change (`public.agent_sessions`), not the role PUBLIC.
    """
    return sql if schema == "public" else _PUBLIC.sub(f'"{schema}".', sql)


def read_opening(answer: Sequence[str | None]) -> str | None:
    """The canary, from what `agent_session_open` answers: [version, oldest program it still serves, canary].

    Raises:
        SchemaOutdated: Schema and program do not fit.
    """
    version, oldest_program, canary = answer
    check_version([version or 0, oldest_program or 0])
    return canary


def pool_options(settings: PostgresSettings) -> dict[str, Any]:
    """More arguments, for connections with statements of the app only: the server ends those that take too long.

    It does so too if no request to cancel one gets through any more. Not through a pooler, which would refuse it or
    hand it on to others; and not if the address itself sets that timeout.
    """
    server = settings.address.server
    if settings.behind_pooler or "statement_timeout" in server or "statement_timeout" in server.get("options", ""):
        return {}
    milliseconds = min(ceil(settings.database_timeout_seconds * 1000), 2**31 - 1)
    return {"server_settings": {"application_name": COMMAND, "statement_timeout": str(milliseconds)}}


async def connect(
    settings: PostgresSettings, credentials: Credentials | None = None, *, seconds: float | None = None, **more: Any
) -> asyncpg.Connection:
    """Connect to the first of the servers that answers and is of the kind that the address asks for.

    Args:
        settings: Where to, and how.
        credentials: Gives user and password; left out: DATABASE_CREDENTIALS, else the address.
        seconds: For all of it; DATABASE_TIMEOUT_SECONDS if left out.
        more: Further arguments of `asyncpg.connect`.

    Raises:
        Exception: One of `DRIVER_ERRORS`, or a `SessionStoreError`.
    """
    try:
        end = monotonic() + (seconds or settings.database_timeout_seconds)
        return await _connect_to_any(settings, credentials or settings.credentials, end, more)
    except DRIVER_ERRORS as error:  # some are ValueErrors as well
        forget_locals(error)
        raise
    except ValueError as error:  # of the driver, about something in the environment (PGPORT …)
        forget_locals(error)
        raise SettingMissing(f"{settings.variable} cannot be used ({type(error).__name__}).") from None
    except BaseException as error:
        forget_locals(error)
        raise


async def _connect_to_any(
    settings: PostgresSettings, credentials: Credentials | None, end: float, more: Mapping[str, Any]
) -> asyncpg.Connection:
    address = settings.address
    hosts: list[tuple[str, int] | None] = list(address.hosts) or [None]
    if address.shuffled:
        random.shuffle(hosts)
    targets = ("standby", "any") if address.target == "prefer-standby" else (address.target,)
    tries = [(host, target) for target in targets for host in hosts]
    patience = address.socket.get("connect_timeout", 0)
    for number, (host, target) in enumerate(tries, 1):
        seconds = end - monotonic()
        if number < len(tries):  # one that is silent must leave time for the others
            seconds = min(seconds / 2, patience if patience > 0 else OTHER_HOST_SECONDS)
        elif patience > 0:
            seconds = min(seconds, max(patience, 2))
        if seconds <= 0:
            raise TimeoutError
        try:
            async with asyncio.timeout(seconds):
                return await _log_in(settings, credentials, host, target, more)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
            if number == len(tries):
                raise
            forget_locals(error)
    raise AssertionError("there is always a host")


async def _log_in(
    settings: PostgresSettings,
    credentials: Credentials | None,
    host: tuple[str, int] | None,
    target: str | None,
    more: Mapping[str, Any],
) -> asyncpg.Connection:
    again = credentials is not None
    while True:
        login = Login(*await ask(credentials)) if credentials else settings.address.login
        try:
            connection: asyncpg.Connection = await asyncpg.connect(**_options(settings, host, login, target, more))
        except asyncpg.InvalidAuthorizationSpecificationError as error:  # and its subclass for passwords
            if credentials:
                mark_asked(error)
            if not again:
                raise
            again = False  # it may have expired just now: the next one is new
        else:
            keep_alive(connection, settings.address.socket)
            return connection


@forgets_locals
def _options(
    settings: PostgresSettings, host: tuple[str, int] | None, login: Login, target: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments for `asyncpg.connect`."""
    address = settings.address
    options: dict[str, Any] = {
        "user": login.user,
        "password": login.password,
        "database": address.database,
        "target_session_attrs": target,
        "command_timeout": settings.database_timeout_seconds,
        "timeout": None,
        **address.driver,
        **tls_options(address.tls, settings.variable),
        **more,
    }
    if host is not None:
        options |= {"host": [host[0]], "port": [host[1]]}
    ours = {} if settings.behind_pooler else {"application_name": COMMAND}
    if settings.behind_pooler:
        options["statement_cache_size"] = 0
    options["server_settings"] = {**ours, **more.get("server_settings", {}), **address.server}
    return options


def how_to_upgrade() -> str:
    """What a message says to do about a schema that is too old."""
    return how_to(
        "db upgrade",
        "Apply the SQL files of the migrations folder: `upgrade(settings, read_migrations(folder))`, both from "
        "{package}.postgres.schema",
    )


def check_version(versions: Sequence[int | str]) -> None:
    """Compare the schema's [version, oldest program it still serves] with this program.

    Raises:
        SchemaOutdated: One of them is too old for the other; the message says which.
    """
    version, oldest_program = map(int, versions)
    if version < SCHEMA_VERSION:
        raise SchemaOutdated(
            f"The database schema is version {version}, this program needs {SCHEMA_VERSION}. {how_to_upgrade()}."
        )
    if oldest_program > SCHEMA_VERSION:
        raise SchemaOutdated(
            f"The database schema (version {version}) is made for newer programs than this one ({SCHEMA_VERSION}). "
            "Deploy the current version of this app."
        )
