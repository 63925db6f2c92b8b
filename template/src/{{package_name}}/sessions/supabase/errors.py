"""What Supabase says when it will not or cannot, as our errors with what to do."""

from __future__ import annotations

from contextlib import suppress

import httpx

from ..errors import (
    ItemTooLarge,
    SchemaOutdated,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
    WrongOwner,
    forget_locals,
    how_to,
)
from .connection import WHERE_KEYS_ARE, SupabaseSettings

CONNECTION_FAILURE = "08006"
SIZE_POLICY = "agent_sessions_size"
CUT = ("08", "57P0")
"""Begin of the codes after which a statement may have been carried out; after all others it was rolled back."""


class Refusal(Exception):
    """An answer that is not the result of a call. Holds nothing of the body but the server's code and main sentence.

    The library's own `APIError` leaves out the status, quotes stored values, and takes a web page for a result.
    """

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(f"HTTP {status} {code}".strip())
        self.status, self.code, self.message = status, code, message


class TokenExpired(StoreRefused):
    """The access token has ended; nothing was carried out."""


def how_to_upgrade() -> str:
    """What a message says to do about a project without our schema."""
    return how_to(
        "db upgrade",
        "Apply the SQL files of supabase/migrations/: `supabase db push`, or `upgrade(settings.database, "
        "read_migrations(folder), SUPABASE_HISTORY)` from {package}.postgres.schema and {package}.supabase.history",
    )


async def refuse(response: httpx.Response) -> None:
    """Let pass what PostgREST says when a function was carried out, as a hook of the HTTP client.

    Raises:
        Refusal: It was not carried out, or somebody else answers here.
    """
    is_json = response.headers.get("content-type", "").startswith("application/json")
    if response.status_code == 204 or (response.status_code == 200 and is_json):
        return
    answer: object = None
    if is_json:
        await response.aread()
        with suppress(ValueError):
            answer = response.json()
    body = answer if isinstance(answer, dict) else {}
    code, message = str(body.get("code") or ""), str(body.get("message") or "")
    if body.get("code") == "" and not message:
        # So PostgREST passes on that its connection broke before PostgreSQL could say why.
        code, message = CONNECTION_FAILURE, "the connection to the database broke"
    raise Refusal(response.status_code, code, message)


def translate(error: Exception, settings: SupabaseSettings, *, signed_in: bool) -> SessionStoreError:
    """What went wrong in a call.

    Args:
        error: A `Refusal`, one of httpx, or a `ValueError` from encoding the call.
        settings: Tells where the project is, and what kind of key is used.
        signed_in: Whether the call was made with the access token of a user.
    """
    forget_locals(error)  # those of httpx hold keys and tokens
    server = f"Supabase at {settings.where}"
    if isinstance(error, Refusal):
        return (
            _from_database(error, server)
            or _from_login(error, server, settings, signed_in)
            or _from_gateway(error, server)
            or SessionStoreError(f"{server} refused the call ({error}): {error.message or 'no reason given'}")
        )
    match error:
        case httpx.PoolTimeout():
            return StoreUnavailable(
                f"{server}: no free connection within {settings.supabase_timeout_seconds:g} s "
                f"(SUPABASE_TIMEOUT_SECONDS; SUPABASE_POOL_MAX is {settings.supabase_pool_max})."
            )
        case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StoreRefused(f"{server} shows a certificate that is not trusted here: {error}. Set SSL_CERT_FILE.")
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            reason = str(error) or type(error).__name__
            return StoreUnavailable(f"Cannot reach {server}: {reason}. Is it up, and SUPABASE_URL right?")
        case httpx.TimeoutException():
            return timed_out(settings, maybe_applied=True)
        case httpx.HTTPError():
            return StoreUnavailable(
                f"The connection to {server} was lost ({type(error).__name__}).", maybe_applied=True
            )
        case httpx.InvalidURL():
            return SettingMissing("SUPABASE_URL is not the address of a project. Write https://<project>.supabase.co.")
    # From the encoder, before anything was sent. Its message may quote what it could not encode.
    return SessionStoreError(f"{server}: a title or metadata holds what JSON cannot carry ({type(error).__name__}).")


def timed_out(settings: SupabaseSettings, *, maybe_applied: bool = False) -> StoreUnavailable:
    """What to raise when a call has taken as long as it may."""
    seconds = f"{settings.supabase_timeout_seconds:g} s (SUPABASE_TIMEOUT_SECONDS)"
    problem = f"Supabase at {settings.where} did not answer within {seconds}."
    return StoreUnavailable(problem, maybe_applied=maybe_applied)


def _from_database(error: Refusal, server: str) -> SessionStoreError | None:
    """Codes: https://docs.postgrest.org/en/latest/references/errors.html and PostgreSQL's own."""
    code, problem = error.code, error.message
    match code[:2], code:
        case (_, "PGRST202" | "PGRST203" | "PGRST204" | "PGRST205" | "42883" | "42P01"):
            return SchemaOutdated(
                f"{server} does not have the functions of this app, or has not noticed them yet. {how_to_upgrade()}; "
                "if that changes nothing, run the SQL: notify pgrst, 'reload schema'."
            )
        case (_, "PGRST106"):
            return StoreRefused(f"{server} does not offer the schema public. Add it: Project settings → Data API.")
        case (_, "PGRST001"):
            return StoreUnavailable(f"{server} lost its database: {problem}", maybe_applied=True)
        case (_, "PGRST000" | "PGRST002" | "PGRST003"):
            return StoreUnavailable(f"{server} has no database to ask: {problem}")
        case ("08" | "25" | "40", _) | (_, "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "53300"):
            return StoreUnavailable(f"{server} cannot serve now: {problem}.", maybe_applied=code.startswith(CUT))
        case ("53", _):
            return StoreRefused(f"{server} is out of resources: {problem}.")
    return None


def _from_login(error: Refusal, server: str, settings: SupabaseSettings, signed_in: bool) -> SessionStoreError | None:
    code, problem = error.code, error.message
    what, source = ("the access token", "") if signed_in else ("SUPABASE_KEY", f" ({WHERE_KEYS_ARE})")
    match code, error.status:
        case (_, 401) if not code and signed_in and "expired" in problem.lower():  # a gateway that looks at tokens
            return TokenExpired(f"{server}: the access token has expired. Take a fresh one from the user's client.")
        case (_, 401) if not code:  # the gateway, before any token was looked at
            return StoreRefused(f"{server} refuses SUPABASE_KEY. Copy it again ({WHERE_KEYS_ARE}).")
        case ("PGRST301" | "PGRST303", _) if "expired" in problem:
            problem = f"{server}: {what} has expired."
            if not signed_in:
                return StoreRefused(f"{problem} Copy the current one{source}, and make a new session with it.")
            return TokenExpired(
                f"{problem} Take a fresh one from the signed-in user's client, and make a new session with it; or pass "
                "a function that returns fresh ones as access_token."
            )
        case ("PGRST300" | "PGRST301" | "PGRST302" | "PGRST303", _):
            return StoreRefused(f"{server} does not accept {what}: {problem}. Is it of this project?{source}")
        case ("22023", _) if signed_in:  # the role that it names does not exist
            return StoreRefused(f"{server} does not accept {what}: {problem}. Is it of a signed-in user?")
        case ("42501", _) if "needs the server key" in problem:
            return _without_server_key(server, settings)
        case ("42501", _) if f'"{SIZE_POLICY}"' in problem:
            return ItemTooLarge(
                f"{server}: an item is larger than the database takes from signed-in users; nothing was stored. Refer "
                "to large files by URL or file id, or raise the limit by the SQL: "
                f"alter policy {SIZE_POLICY} on public.agent_sessions with check (octet_length(content) <= …)."
            )
        case ("42501", _) if "row-level security" in problem:
            return WrongOwner(
                f"{server}: a signed-in user may only write sessions of their own. Leave user_id out, or pass the "
                "access token of that user."
            )
        case ("42501", _) if not signed_in and settings.rights != "secret":
            return StoreRefused(
                f"{server}: {problem}. SUPABASE_KEY is a publishable key, with which only signed-in users may store: "
                f"pass their access_token, or use the secret key on a server ({WHERE_KEYS_ARE})."
            )
        case ("42501", _) if signed_in:
            return StoreRefused(f"{server}: {problem}. Signed-in users may not do this; the secret key may.")
        case ("42501", _):
            return StoreRefused(f"{server}: {problem}. {how_to_upgrade()}: that grants what is needed.")
    return None


def _without_server_key(server: str, settings: SupabaseSettings) -> SessionStoreError:
    what = f"{server}: signed-in users may read their sessions; a change needs the server's key as well"
    todo = how_to(
        "db server-key",
        "Call `add_server_key(settings, new_server_key())` from {package}.supabase.server_key",
    )
    if settings.supabase_server_key is None:
        return SettingMissing(f"{what}, and SUPABASE_SERVER_KEY is not set. {todo}, which makes one.")
    return StoreRefused(
        f"{what}, and the database does not know the one in SUPABASE_SERVER_KEY. Is it of this project, and was not "
        f"removed? {todo}, which makes one that it knows."
    )


def _from_gateway(error: Refusal, server: str) -> SessionStoreError | None:
    """What stands in front of the database. https://supabase.com/docs/guides/platform/http-status-codes"""
    match error.status:
        case 200 | 301 | 302 | 303 | 307 | 308 | 404 | 405 if not error.code:
            return StoreRefused(
                f"{server} is not a REST API of Supabase (HTTP {error.status}). Correct SUPABASE_URL, or sign in to "
                "the proxy in front of it."
            )
        case 402:
            return StoreRefused(f"{server} is restricted: see the project's usage and bills in the dashboard.")
        case 413:
            return ItemTooLarge(
                f"{server} takes no request as large as this; nothing was stored. Refer to large files by URL or file "
                "id, and lower SESSION_MAX_ITEM_BYTES to see it earlier."
            )
        case 429:
            return StoreUnavailable(f"{server} has had too many requests for now (HTTP 429).")
        case 540:
            return StoreRefused(f"{server} is paused. Restore the project in the dashboard.")
        case 521 | 522 | 523:  # the proxy found no server behind it
            return StoreUnavailable(f"{server} is down (HTTP {error.status}).")
        case status if status >= 500 and not error.code:
            return StoreUnavailable(f"{server} cannot serve now (HTTP {status}).", maybe_applied=True)
    return None
