"""`sessions export` and `sessions import`."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .cli_common import AnyUser, count, name, with_store
from .terminal import CommandError, complain, note, progress

if TYPE_CHECKING:
    from .sessions import SessionKey
    from .transfer import Outcome


def export_(
    file: Annotated[str, typer.Argument(help="Where to; - for stdout.")] = "-",
    user: AnyUser = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only this session.")] = None,
) -> None:
    """Write sessions to a file that `import` reads: JSON lines, every item exactly as stored."""
    from .files import writing
    from .sessions.store import SessionKey
    from .transfer import export_sessions

    SessionKey(user or "", "any").check()
    with writing(file) as out, progress("Exporting", show=file != "-" or not sys.stdout.isatty()) as advance:
        done = with_store(lambda store: export_sessions(store, out, user_id=user, session_id=session, report=advance))
    note(f"Exported {count(done.sessions, 'session')} with {count(done.items, 'item')}.")


def import_(
    file: Annotated[str, typer.Argument(help="What `export` wrote; - for stdin.")],
    on_conflict: Annotated[
        Literal["refuse", "skip", "replace"], typer.Option(help="For a session whose stored history is another one.")
    ] = "refuse",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
) -> None:
    """Bring exported sessions in. Importing a file again changes nothing."""
    from .files import reading
    from .settings import load_settings
    from .transfer import import_sessions
    from .transfer_file import check

    outcomes: Counter[Outcome] = Counter()
    with reading(file) as source:
        places = check(source, load_settings().session_max_item_bytes)
        with progress("Importing", len(places)) as advance:

            def report(key: SessionKey, outcome: Outcome) -> None:
                outcomes[outcome] += 1
                advance(1)
                if outcome == "conflict":
                    complain(f"Conflict: {name(key.session_id, key.user_id)} is stored with another history.")

            try:
                with_store(
                    lambda store: import_sessions(
                        store, source, places, on_conflict=on_conflict, dry_run=dry_run, report=report
                    )
                )
            except BaseException:
                if finished := outcomes.total():
                    complain(f"Stopped after {finished} of {len(places)} sessions. Run the command again to go on.")
                raise
    done = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "nothing in it"
    note(f"{'It would be' if dry_run else 'Done'}: {done}.")
    if outcomes["conflict"]:
        raise CommandError("Sessions in conflict were left as they are. --on-conflict skip or replace decides.")
