"""The errors of PostgreSQL, its driver and its poolers as ours, with what to do."""

from __future__ import annotations

import errno
import re
import socket
import ssl

import asyncpg

from ..credentials import where_to_look
from ..errors import SchemaOutdated, SessionStoreError, SettingMissing, StoreRefused, StoreUnavailable, forget_locals
from .connection import NoFreeConnection, PostgresSettings, how_to_upgrade

_PAUSED_OR_IPV6 = re.compile(r"\bdb\.[a-z0-9]+\.supabase\.(?:co|com|net|red)\b")
# What poolers say in words, because they have a code for few things (Supavisor XX000, PgBouncer 08P01).
_FULL = re.compile(r"max.?client|EMAXC|ECHECKOUT|check ?out|too many (?:clients|connections)|no more connections", re.I)
_NO_TENANT = re.compile(r"tenant(?:/| or )user|EINVALIDUSERINFO|ENOTFOUND", re.I)
_NO_USER = re.compile(r"no such user|auth\w* (?:failed|error)|EAUTH|ECIRCUITBREAKER|wrong password", re.I)
_NO_DATABASE = re.compile(r"no such database|database \S+ does not exist", re.I)
_WANTS_TLS = re.compile(r"no encryption|SSL off|SSL required|SSL connection is required|ESSLREQUIRED", re.I)
_PARAMETER = re.compile(r"startup parameter", re.I)
_SETTING = re.compile(r'parameter "([A-Za-z_][\w.]{0,62})"')
_SETTING_CODES = ("22023", "42501", "42704", "55P02")


def translate(error: BaseException, settings: PostgresSettings, *, sent: bool) -> SessionStoreError:
    """A driver's error as ours, with what to do. Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html

    Args:
        error: One of `DRIVER_ERRORS`.
        settings: Tells where the server is.
        sent: Whether the statement had been handed to the driver.
    """
    if isinstance(error, SessionStoreError):
        return error
    forget_locals(error)  # the driver's hold the password
    server = f"PostgreSQL at {settings.where}"
    code: str = getattr(error, "sqlstate", None) or ""
    # Not str(error): that appends the server's details, which may quote stored values.
    problem = str(error.args[0]) if error.args else type(error).__name__
    if not sent:
        told, problem = problem, settings.address.without_secrets(problem)
        if isinstance(error, asyncpg.PostgresError):  # a server may repeat the user, or an option
            error.args = (problem,)
            vars(error).update(message=problem, detail=None, hint=None)
        if refusal := _refusal(error, code, told, problem, server, settings):
            return refusal
    match code[:2], code:
        case ("28", _):
            return StoreRefused(f"{server} refused the login. Check {where_to_look(error, settings.variable)}.")
        case (_, "3D000"):
            return StoreRefused(f"{server}: this database does not exist. Create it, or correct {settings.variable}.")
        case (_, "42501") if not sent:
            return StoreRefused(f"{server}: {problem}. Grant this role CONNECT on the database.")
        case (_, "42501"):
            return StoreRefused(f"{server}: {problem}. Grant the rights that docs/database.md lists.")
        case (_, "42883" | "42P01" | "3F000"):
            what = f"the schema {settings.database_schema} lacks tables or functions that this version of the app needs"
            return SchemaOutdated(f"{server}: {what}. {how_to_upgrade()}.")
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
        case asyncpg.DataError() if sent:  # its message quotes the value
            return SessionStoreError(f"{server}: a value of this call cannot be stored (half a surrogate pair?).")
        case asyncpg.PostgresError() if not sent:
            return StoreRefused(f"{server} refused the connection ({code}): {problem}.")
        case asyncpg.PostgresError():
            return SessionStoreError(f"{server} refused the statement ({code}): {problem}")
        case asyncpg.ClientConfigurationError():
            return SettingMissing(f"{settings.variable} cannot be used: {error}.")
        case asyncpg.TargetServerAttributeNotMatched():
            return StoreUnavailable(
                f"{server}: no server is of the kind that target_session_attrs={settings.address.target} in "
                f"{settings.variable} asks for."
            )
        case ssl.SSLCertVerificationError():
            return StoreRefused(
                f"{server} shows a certificate that is not trusted: {error.verify_message}. Name the file of its "
                f"authority in {settings.variable} (sslrootcert=…) and the host as the certificate does."
            )
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


def _refusal(
    error: BaseException, code: str, told: str, problem: str, server: str, settings: PostgresSettings
) -> SessionStoreError | None:
    """What poolers, proxies and networks say to a new connection in a way of their own.

    `told` is the whole of it; `problem` is without what the address says of the login, for messages.
    """
    if isinstance(error, OSError):
        if _PAUSED_OR_IPV6.search(settings.where) and _is_unreachable(error):
            return StoreRefused(
                f"{server} cannot be reached: this address of Supabase has IPv6 only, or the project is paused. Put "
                f"the address of the session pooler into {settings.variable} (Connect → Session pooler)."
            )
        # With `prefer` and `allow` the driver continues without TLS: then this is a server that answers with an error.
        if "rejected SSL upgrade" in told and settings.address.ssl_mode not in ("prefer", "allow"):
            return StoreRefused(
                f"{server} offers no TLS, which sslmode={settings.address.ssl_mode} in {settings.variable} asks for."
            )
        return None
    if code in _SETTING_CODES and (setting := _SETTING.search(told)):
        # What stands in `options` is not quoted: it may be cut from anything.
        what = setting[1].lower() if setting[1].lower() in settings.address.server else "a setting in options"
        return SettingMissing(
            f"{settings.variable}: {server} does not know {what}, or does not allow its value to this user. "
            "Correct or remove it."
        )
    if not isinstance(error, asyncpg.PostgresError) or code not in ("XX000", "08P01", "28000", "28P01", "08006"):
        return None
    if _FULL.search(told):
        return StoreUnavailable(f"{server}: the pooler has no connection left: {problem}. Lower DATABASE_POOL_MAX.")
    if _WANTS_TLS.search(told):
        return StoreRefused(f"{server} takes connections with TLS only. Add ?sslmode=require to {settings.variable}.")
    if "pg_hba.conf" in told:
        return StoreRefused(
            f"{server} does not let this user in from this machine. Add it to pg_hba.conf or to the provider's list of "
            "allowed networks."
        )
    if code.startswith("28"):
        return None
    if _NO_TENANT.search(told):
        return StoreRefused(
            f"{server}: the pooler does not know this project or user. In {settings.variable} the user must be "
            "postgres.<project ref>, and the host the one shown for the project (Connect → Session pooler)."
        )
    if _NO_DATABASE.search(told):
        return StoreRefused(f"{server}: this database does not exist. Create it, or correct {settings.variable}.")
    if _NO_USER.search(told):
        return StoreRefused(f"{server} refused the login. Check {where_to_look(error, settings.variable)}.")
    if _PARAMETER.search(told):
        return StoreRefused(
            f"{server}: the pooler does not take a parameter of {settings.variable}: {problem}. Remove it, or add it "
            "to the pooler's ignore_startup_parameters."
        )
    return None


def _is_unreachable(error: OSError) -> bool:
    """Whether the name has no address for this network; several attempts are one error with their texts."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN
    codes = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return error.errno in codes or any(f"[Errno {code}]" in str(error) for code in codes)
