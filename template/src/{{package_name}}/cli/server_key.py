"""`db server-key`: the key that is required to change what signed-in users have stored."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from .console import CommandError, answer, command_settings, note, when


def server_key(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL for the SQL editor on stdout, and the key on stderr.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the keys that the database knows, by their hash.")] = False,
    remove: Annotated[
        str, typer.Option("--remove", metavar="HASH", help="Remove a key: the first digits of its hash.")
    ] = "",
) -> None:
    """Make a key for SUPABASE_SERVER_KEY, print it once, and let the database know its SHA-256 (by SUPABASE_DB_URL).

    The database takes two keys, so that a new one can be brought to all servers before the old one is removed.
    """
    from ..app import server
    from ..sessions.supabase.server_key import (
        add_server_key,
        hash_of,
        new_server_key,
        remove_server_key,
        server_keys,
        statement_for,
    )

    if sql + show + bool(remove) > 1:
        raise CommandError("--sql, --list and --remove are three things to do: one at a time.")
    key = new_server_key()
    if sql:
        answer(statement_for(key))
        note("Run this SQL on the database, then put the key into .env of the server; it is not shown again:")
        note(f"SUPABASE_SERVER_KEY={key}")
        return
    with server(command_settings(), embedded=True) as settings:
        if show:
            known = asyncio.run(server_keys(settings))
            ours = None if settings.server_key is None else hash_of(settings.server_key)
            for each in known:
                here = "  SUPABASE_SERVER_KEY" if each.sha256 == ours else ""
                answer(f"{each.name}  {when(each.created_at)}{here}")
            if not known:
                note("The database knows no server key: signed-in users can read, and change nothing.")
        elif remove:
            asyncio.run(remove_server_key(settings, remove))
            note("Removed. Servers that still send this key cannot change anything for signed-in users any more.")
        else:
            asyncio.run(add_server_key(settings, key))
            answer(key)
            note("Put this key into .env of the server as SUPABASE_SERVER_KEY; it is not shown again.")
