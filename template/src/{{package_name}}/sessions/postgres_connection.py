"""Reaching PostgreSQL: the settings, the connection options that follow from them, and its errors as ours."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from pydantic import Field, SecretStr

from .store import (
    COMMAND,
    SchemaOutdated,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreSettings,
    StoreUnavailable,
    how_to,
)
from .tracebacks import forget_locals, forgets_locals

SCHEMA_VERSION = 20261126000001
"""The newest migration that this program was written for."""

EXAMPLE = "postgresql://user:password@host:5432/name"

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
    """postgresql://user:password@host:5432/name; with ?sslmode=require for TLS."""
    database_pool_max: int = Field(default=10, ge=1)
    """Connections per process, at most. Calls beyond it wait."""
    database_timeout_seconds: float = Field(default=30.0, gt=0)
    """For one call: waiting for a free connection, connecting, and its statement, together."""
    database_pooler: Literal["auto", "transaction", "none"] = "auto"
    """Is a transaction pooler (PgBouncer, Supavisor) in between? auto: yes for port 6543 and ?pgbouncer=true."""

    @property
    @forgets_locals
    def dsn(self) -> str:
        """The address as asyncpg takes it.

        Raises:
            SettingMissing: It is not set, or is no PostgreSQL URL.
        """
        # No frame that an error leaves behind may have the address, with its password, among its local variables.
        if self.database_url is None:
            raise SettingMissing(f"{self.variable} is not set. Put {EXAMPLE} into .env.")
        if problem := _problem(self.database_url):
            raise SettingMissing(f"{self.variable} {problem}")
        return f"postgresql://{_parts(self.database_url)[1]}"

    @property
    def behind_pooler(self) -> bool:
        """Whether the server may change between two statements, so that prepared statements and SET get lost."""
        if self.database_pooler != "auto":
            return self.database_pooler == "transaction"
        url = urlsplit(self.dsn)
        return url.port == 6543 or parse_qs(url.query).get("pgbouncer") == ["true"]

    @property
    def where(self) -> str:
        """Host, port and database, for messages: the address without its secrets."""
        url = urlsplit(self.dsn)
        return f"{url.hostname or 'localhost'}:{url.port or 5432}{url.path}"


def connect_options(settings: PostgresSettings) -> dict[str, Any]:
    """Arguments for `asyncpg.connect`."""
    options: dict[str, Any] = {
        # asyncpg does not know the parameter that others use to announce PgBouncer.
        "dsn": settings.dsn.replace("?pgbouncer=true&", "?")
        .replace("?pgbouncer=true", "")
        .replace("&pgbouncer=true", ""),
        "timeout": settings.database_timeout_seconds,
        "command_timeout": settings.database_timeout_seconds,
    }
    if settings.behind_pooler:
        return {**options, "statement_cache_size": 0}
    return {**options, "server_settings": {"application_name": COMMAND}}


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
    if settings.behind_pooler or "statement_timeout" in unquote(urlsplit(settings.dsn).query):
        return {}
    milliseconds = min(ceil(settings.database_timeout_seconds * 1000), 2**31 - 1)
    return {"server_settings": {"application_name": COMMAND, "statement_timeout": str(milliseconds)}}


async def connect(settings: PostgresSettings, **more: Any) -> asyncpg.Connection:
    """Connect with `connect_options`, replaced by `more`.

    Raises:
        Exception: One of `DRIVER_ERRORS`.
    """
    try:
        return await asyncpg.connect(**{**connect_options(settings), **more})
    except BaseException as error:
        forget_locals(error)
        raise


def _parts(url: SecretStr) -> tuple[str, str]:
    """Scheme and rest of an address."""
    scheme, separator, rest = url.get_secret_value().strip().partition("://")
    return (scheme if separator else "", rest)


def _problem(url: SecretStr) -> str | None:
    """Why an address cannot be used; continues a sentence."""
    scheme, rest = _parts(url)
    # What SQLAlchemy calls postgresql+asyncpg is the same address.
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        return f"is no PostgreSQL URL. Write {EXAMPLE}."
    try:
        parts = urlsplit(f"postgresql://{rest}")
        # An @ or # behind the host is the rest of a password that was cut at one of its own characters.
        usable = parts.port != 0 and not parts.fragment and "@" not in parts.path + parts.query
    except ValueError:  # the port is no number, or a [ is nowhere closed
        usable = False
    if usable:
        return None
    return (
        "cannot be used: its port is no number, or its password holds one of / ? # @ : [ ] "
        "which must be written as %2F %3F %23 %40 %3A %5B %5D."
    )


def how_to_upgrade() -> str:
    """What a message says to do about a schema that is too old."""
    return how_to(
        "db upgrade",
        "Apply the SQL files of the migrations folder: `upgrade(settings, read_migrations(folder))`, both from "
        "{package}.postgres_schema",
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


def translate(error: BaseException, settings: PostgresSettings, *, sent: bool) -> SessionStoreError:
    """A driver's error as ours, with what to do. Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html

    Args:
        error: One of `DRIVER_ERRORS`.
        settings: Tells where the server is.
        sent: Whether the statement had been handed to the driver.
    """
    forget_locals(error)  # the driver's hold the password
    server = f"PostgreSQL at {settings.where}"
    code: str = getattr(error, "sqlstate", None) or ""
    # Not str(error): that appends the server's details, which may quote stored values.
    problem = str(error.args[0]) if error.args else type(error).__name__
    match code[:2], code:
        case ("28", _):
            return StoreRefused(f"{server} refused the login. Check user and password in {settings.variable}.")
        case (_, "3D000"):
            return StoreRefused(f"{server}: this database does not exist. Create it, or correct {settings.variable}.")
        case (_, "42501"):
            return StoreRefused(f"{server}: {problem}. Grant the rights that README.md lists under deployment.")
        case (_, "42883" | "42P01" | "3F000"):
            return SchemaOutdated(f"{server} has no tables or functions of this app. {how_to_upgrade()}.")
        case (_, "26000" | "42P05"):
            return SessionStoreError(f"{server}: a pooler swaps prepared statements. Set DATABASE_POOLER=transaction.")
        case (_, "53300"):
            return StoreUnavailable(
                f"{server} has no connection left. Lower DATABASE_POOL_MAX or raise max_connections."
            )
        case ("53", _):
            return StoreRefused(f"{server} is out of resources: {problem}.")
        case (_, "25006"):
            return StoreUnavailable(
                f"{server} takes no writes: {problem}. Is it a standby, or is default_transaction_read_only on? "
                f"Point {settings.variable} to the primary."
            )
        case (_, "57014"):
            return StoreUnavailable(
                f"{server} did not finish the statement within {settings.database_timeout_seconds:g} s "
                f"(DATABASE_TIMEOUT_SECONDS), or somebody cancelled it: {problem}."
            )
        case ("08" | "25" | "40", _) | (_, "55P03" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05"):
            # Only these cut the connection; after the others the statement was certainly rolled back.
            cut = code[:2] == "08" or code[:4] == "57P0"
            return StoreUnavailable(f"{server} cannot serve now: {problem}.", maybe_applied=sent and cut)
    match error:
        case asyncpg.DataError():  # its message quotes the value
            return SessionStoreError(f"{server}: a value of this call cannot be stored (half a surrogate pair?).")
        case asyncpg.PostgresError():
            return SessionStoreError(f"{server} refused the statement ({code}): {problem}")
        case asyncpg.ClientConfigurationError():
            return SettingMissing(f"{settings.variable} cannot be used: {error}.")
        case asyncpg.UnsupportedClientFeatureError():
            return SessionStoreError(f"{server}: {error}")
        case NoFreeConnection():
            return StoreUnavailable(
                f"{server} gave no free connection within {settings.database_timeout_seconds:g} s "
                f"(DATABASE_TIMEOUT_SECONDS; DATABASE_POOL_MAX is {settings.database_pool_max})."
            )
        case TimeoutError():
            return StoreUnavailable(
                f"{server} did not answer within {settings.database_timeout_seconds:g} s (DATABASE_TIMEOUT_SECONDS).",
                maybe_applied=sent,
            )
    lost = "The connection to" if sent else "Cannot reach"
    reason = f" was lost ({type(error).__name__})" if sent else f": {error}"
    todo = f"Is the server up, and {settings.variable} right?"
    return StoreUnavailable(f"{lost} {server}{reason}. {todo}", maybe_applied=sent)
