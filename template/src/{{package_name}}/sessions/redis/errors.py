"""redis-py's errors as ours, with what to do."""

from __future__ import annotations

import re
import ssl

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from ..credentials import where_to_look
from ..errors import SessionStoreError, SettingMissing, StoreRefused, StoreUnavailable, forget_locals
from .address import PROXY
from .settings import RedisSettings

DRIVER_ERRORS = (RedisError, RedisClusterException, OSError)
"""All that redis-py raises. A timeout is an OSError."""

_CERTIFICATE = "ssl_certfile=…&ssl_keyfile=… to REDIS_URL"
HINT = "Is the server up, and REDIS_URL right (rediss:// if it has TLS, and only then)?"


def translate(error: BaseException, settings: RedisSettings, *, sent: bool) -> SessionStoreError:
    """A driver's error as ours. Codes: https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors

    Args:
        error: One of `DRIVER_ERRORS`.
        settings: Tells where the server is.
        sent: Whether the command had been handed to the driver.
    """
    forget_locals(error)  # the driver's hold the password
    address = settings.address
    server = f"Redis at {address.where}"
    while isinstance(error, RedisClusterException) and (wrapped := error.__cause__ or error.__context__):
        error = wrapped  # it says what to do
    seconds = f"{settings.redis_timeout_seconds:g} s (REDIS_TIMEOUT_SECONDS)"
    match error:
        case SessionStoreError():
            return type(error)(str(error))  # with causes of its own
        case AuthenticationError() | AuthenticationWrongNumberOfArgsError():
            check = where_to_look(error, "REDIS_URL")
            return StoreRefused(f"{server} refused the login. Check {check}.{address.doubt}")
        case ResponseError() | BusyLoadingError():
            return _refusal(error, server)
        case MasterNotFoundError():
            return _no_primary(error, settings)
        case InvalidResponse():
            return SettingMissing(f"What answers at {settings.where} is not a Redis server. Correct REDIS_URL.")
        case RedisClusterException():
            return StoreUnavailable(f"{server} cannot serve now: {str(error).rstrip('.')}.")
        case TimeoutError():
            if sent:
                return StoreUnavailable(f"{server} did not answer within {seconds}.", maybe_applied=True)
            return StoreUnavailable(f"Cannot reach {server} within {seconds}. {HINT}")
    if "max number of clients" in str(error):
        return StoreUnavailable(f"{server} has no connection left. Raise its maxclients.")
    if sent:
        lost = f"The connection to {server} was lost ({type(error).__name__}). {HINT}"
        return StoreUnavailable(lost, maybe_applied=True)
    match error.__context__:
        case ssl.SSLCertVerificationError(verify_message=why):
            return StoreRefused(
                f"{server}: its certificate is not trusted ({why}). "
                "Add ?ssl_ca_certs=/path/to/ca.pem to REDIS_URL, with the certificate of its authority."
            )
        case ssl.SSLError(reason=str(why)) if "CERTIFICATE_REQUIRED" in why:
            return StoreRefused(f"{server} wants a certificate of its clients. Add {_CERTIFICATE}.")
        case ssl.SSLError(reason=why):
            return StoreRefused(f"{server}: no TLS connection ({why}). Write redis:// in REDIS_URL if it has no TLS.")
    reason = str(error).rstrip(".")
    if address.tls and "ssl_certfile" not in address.options:
        if "CERTIFICATE_REQUIRED" in reason:
            return StoreRefused(f"{server} wants a certificate of its clients. Add {_CERTIFICATE}.")
        if "Error while reading" in reason or "closed by server" in reason:
            return StoreUnavailable(
                f"{server} hung up ({reason}). If it wants a certificate of its clients, add {_CERTIFICATE}."
                f"{address.doubt}"
            )
    return StoreUnavailable(f"Cannot reach {server}: {reason}. {HINT}{address.doubt}")


def _refusal(error: RedisError, server: str) -> SessionStoreError:
    """What the server answered, so it did not do what it was asked to."""
    # The server quotes the beginning of what it was sent: that may be an item.
    problem = str(error).partition(", with args beginning with")[0]
    problem = re.sub(r" script: (?:[0-9a-f]{40}, )?on @.*", "", problem).rstrip(".")  # where in which script
    match error:
        case NoPermissionError():
            return StoreRefused(f"{server}: {problem}. Grant the rights that docs/database.md lists.")
        case OutOfMemoryError():
            return StoreRefused(
                f"{server} has no memory left; nothing was stored. Raise maxmemory, or set SESSION_TTL."
            )
        case MovedError():
            return SettingMissing(f"{server} is a node of a cluster. Write redis+cluster:// in REDIS_URL.")
        case ClusterCrossSlotError():
            return _cross_slot(server)
        case ReadOnlyError():
            return StoreUnavailable(
                f"{server} is a read-only replica. If this goes on: put the primary into REDIS_URL, "
                "or let Sentinels find it with redis+sentinel://."
            )
        case BusyLoadingError() | ClusterDownError() | TryAgainError():
            return StoreUnavailable(f"{server} cannot serve now: {problem}.")
    code = problem.partition(" ")[0]
    match code:
        case "NOREPLICAS" | "BUSY" | "UNBLOCKED" | "INPROG" | "FAILOVER":
            return StoreUnavailable(f"{server} cannot serve now: {problem}.")
        case "MISCONF":
            return StoreRefused(f"{server} cannot write to its disk and refuses changes. Look at its log.")
        case "WRONGTYPE":
            return StoreRefused(f"{server}: another app uses keys of this one. Set SESSION_KEY_PREFIX to another word.")
        case "DENIED":
            return StoreRefused(f"{server} only serves its own machine (protected mode). Give it a password.")
    if "CROSSSLOT" in problem:
        return _cross_slot(server)
    if "ACL failure in script" in problem or "executing the script can't" in problem:
        return _refusal(NoPermissionError(problem), server)
    if "'SENTINEL'" in problem:
        return SettingMissing(f"{server}: no Sentinel answers, but an ordinary server. Write redis:// in REDIS_URL.")
    if "DB index" in problem:
        return StoreRefused(f"{server}: this database does not exist. Correct its number in REDIS_URL.")
    if "cluster support disabled" in problem or "SELECT is not allowed in cluster" in problem:
        scheme = "redis+cluster://" if "SELECT" in problem else "redis://"
        return SettingMissing(f"{server}: {problem}. Write {scheme} in REDIS_URL, or {PROXY} behind a proxy.")
    if re.search(r"unknown command\W+cluster", problem, re.IGNORECASE):
        return SettingMissing(
            f"{server} has no command CLUSTER. Write {PROXY} in REDIS_URL for a cluster behind a proxy "
            "(Redis Enterprise, Azure Managed Redis), or redis:// for one server."
        )
    return SessionStoreError(f"{server} refused the command: {problem}")


def _cross_slot(server: str) -> SessionStoreError:
    return SettingMissing(
        f"{server} is a cluster. Write redis+cluster:// in REDIS_URL, or {PROXY} if it is behind a proxy and has no "
        "command CLUSTER (Redis Enterprise, Azure Managed Redis)."
    )


def _no_primary(error: BaseException, settings: RedisSettings) -> SessionStoreError:
    """redis-py has a text only: "No master found for 'x' : <sentinel> - <error>, …" """
    if "AuthenticationError" in str(error):
        return StoreRefused(
            f"The Sentinels of {settings.where} refused the login. "
            "Add &sentinel_username=…&sentinel_password=… to REDIS_URL."
        )
    if "Error" in str(error).partition(" : ")[2]:
        return StoreUnavailable(f"Cannot reach the Sentinels of {settings.where}. Are they up, and REDIS_URL right?")
    return StoreUnavailable(
        f"The Sentinels of {settings.where} know no such primary that is up. Is the name in ?service= right?"
    )
