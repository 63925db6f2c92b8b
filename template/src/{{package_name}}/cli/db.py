"""`db`: the schema of the database."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from .console import answer, clean, command_settings, note

db = typer.Typer(no_args_is_help=True, help="Look after the schema of the database.")

_MEANING = {
    "pending": "Run `db upgrade`.",
    "changed": "This file is not what was applied. Restore it, and put the change into a new migration.",
    "unknown": "Applied by a newer version of this app, or the file is missing here.",
}


@db.command()
def upgrade() -> None:
    """Apply the migrations that the database has not seen. Safe to run many times, and from many places at once."""
    from ..app import server
    from ..sessions import backend

    known = backend.migrations()
    with server(command_settings(), embedded=True) as settings:
        applied = asyncio.run(backend.upgrade(settings))
    for migration in applied:
        note(f"Applied {migration.version}_{migration.name}.")
    note(f"The database is up to date; the newest migration is {known[-1].version}_{known[-1].name}.")


@db.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Compare the migrations here with those in the database. Exit code 1 if they differ."""
    from ..app import server
    from ..sessions import backend

    with server(command_settings(), embedded=True) as settings:
        states = asyncio.run(backend.status(settings))
    good = all(state.state == "applied" for state in states)
    if as_json:
        answer(json.dumps({"up_to_date": good, "migrations": [state._asdict() for state in states]}))
    else:
        for version, name, state in states:
            answer(f"{state:8} {version}_{clean(name)}")
        for state in sorted({state.state for state in states} & _MEANING.keys()):
            note(f"{state}: {_MEANING[state]}")
    if not good:
        raise typer.Exit(1)
