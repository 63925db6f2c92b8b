"""Is this Supabase project set up as the app needs it?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import Check, SchemaOutdated, SessionStoreError, how_to
from ..postgres.connection import SCHEMA_VERSION
from ..postgres.schema import Migration, check_migrations
from .connection import WHERE_KEYS_ARE, SupabaseSettings
from .history import SUPABASE_HISTORY

if TYPE_CHECKING:
    from .client import Caller

_KEYS = {
    "secret": Check("key", "ok", "SUPABASE_KEY is a secret key: for servers only."),
    "publishable": Check(
        "key",
        "warn",
        "SUPABASE_KEY is a publishable key: only signed-in users can store with it, each call with their access token.",
        f"Use the secret key on a server ({WHERE_KEYS_ARE}).",
    ),
    "unknown": Check(
        "key",
        "warn",
        "SUPABASE_KEY looks like no key of a project: those begin with sb_secret_, sb_publishable_ or eyJ.",
        f"Copy it again ({WHERE_KEYS_ARE}).",
    ),
}

_HOW_TO_MAKE_ONE = how_to("db server-key", "Use {package}.supabase.server_key") + " to make one"
_SOUND = (
    "Row-level security is on for all tables of this app; its policies and triggers keep others out, also where "
    "policies were added; nothing is granted to anon, and no view shows the tables with the rights of its owner. "
    "(Functions of others were not looked at.)"
)


async def check_supabase(settings: SupabaseSettings, migrations: Sequence[Migration]) -> AsyncGenerator[Check, None]:
    """All checks of the project. A later one is left out if an earlier one makes it pointless."""
    from .client import Caller  # imported late: supabase takes half a second

    try:
        yield _check_transport(settings)
        yield _KEYS[settings.rights]
        caller = Caller(settings, None)
    except SessionStoreError as error:
        yield Check("connection", "fail", "SUPABASE_URL or SUPABASE_KEY cannot be used.", str(error))
        return
    try:
        begin = perf_counter()
        try:
            await caller.open("")
        except SchemaOutdated as error:
            yield Check("connection", "ok", f"{settings.where} answers.")
            yield Check("schema", "fail", "The schema does not fit this program.", str(error))
            return
        yield Check("connection", "ok", f"{settings.where} answers in {(perf_counter() - begin) * 1000:.0f} ms.")
        yield await _check_migrations(settings, migrations)
        yield await _check_server_key(settings, caller)
        try:
            exposed: list[str] = await caller.call("agent_session_exposure", {})
        except SchemaOutdated as error:
            yield Check("row-level security", "warn", "It is unknown whether it is on.", str(error))
        else:
            yield _check_exposed(exposed)
    except SessionStoreError as error:
        yield Check("connection", "fail", "The project does not serve us.", str(error))
    finally:
        await caller.close()


def _check_transport(settings: SupabaseSettings) -> Check:
    if settings.url.startswith("https://") or settings.is_local:
        return Check("address", "ok", f"SUPABASE_URL is {settings.url}.")
    what = f"SUPABASE_URL is {settings.url}: the key and all conversations can be read on the way."
    return Check("address", "warn", what, "Use https://, unless this is a private network.")


def _check_exposed(exposed: Sequence[str]) -> Check:
    if not exposed:
        return Check("row-level security", "ok", _SOUND)
    todo = (
        "In the SQL editor, one of: alter table … enable row level security; revoke all on … from anon, public; "
        "alter view … set (security_invoker = true). A policy or trigger: its statement is in supabase/migrations/."
    )
    return Check("row-level security", "fail", f"Open to others than the owners: {'; '.join(exposed)}.", todo)


async def _check_server_key(settings: SupabaseSettings, caller: Caller) -> Check:
    if settings.server_key is None:
        what = "SUPABASE_SERVER_KEY is not set"
        if settings.rights == "secret":
            return Check("server key", "ok", f"{what}; only changes with the access tokens of users need it.")
        todo = f"{_HOW_TO_MAKE_ONE}."
        return Check("server key", "warn", f"{what}: signed-in users can read, and change nothing.", todo)
    if await caller.call("agent_session_is_server", {}):
        return Check("server key", "ok", "The database knows the key in SUPABASE_SERVER_KEY.")
    todo = f"{_HOW_TO_MAKE_ONE} that it knows; `--list` shows those that it knows."
    return Check("server key", "fail", "The database does not know the key in SUPABASE_SERVER_KEY.", todo)


async def _check_migrations(settings: SupabaseSettings, migrations: Sequence[Migration]) -> Check:
    fits = f"The schema fits this program: schema {SCHEMA_VERSION}"
    if settings.supabase_db_url is None:
        return Check("schema", "ok", f"{fits}. (SUPABASE_DB_URL is not set; only applying migrations needs it.)")
    try:
        # What the folder does not know may well be another app's: a project has one history for all.
        harmless = ("applied", "unknown")
        return await check_migrations(settings.database, migrations, fits, history=SUPABASE_HISTORY, harmless=harmless)
    except SessionStoreError as error:
        return Check("schema", "warn", f"{fits}, but migrations could not be applied.", str(error))
