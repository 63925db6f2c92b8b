"""`sessions export` and `sessions import`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import AnyUser, CommandError, command_settings, complain, count, name, note, progress, unknown, with_store

if TYPE_CHECKING:
    from ..sessions import SessionRef, SessionStore
    from ..transfer.sessions import OnConflict, Outcome


def export_(
    file: Annotated[str, typer.Argument(help="Where to; - for stdout.")] = "-",
    user: AnyUser = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only this session.")] = None,
) -> None:
    """Write sessions to a file that `import` reads: JSON lines, every item exactly as stored."""
    from ..sessions.paging import NoSuchSession
    from ..sessions.records import SessionRef
    from ..transfer.file import writing
    from ..transfer.sessions import Exported, export_sessions

    SessionRef(user or "", "any").check()
    with writing(file) as out, progress("Exporting", show=file != "-" or not sys.stdout.isatty()) as advance:

        async def work(store: SessionStore) -> tuple[Exported, bool]:
            try:
                done = await export_sessions(store, out, user_id=user, session_id=session, report=advance)
            except NoSuchSession as error:
                raise await unknown(store, SessionRef(user or "", session or "")) from error
            return done, store.encrypts

        done, encrypted = with_store(work)
    note(f"Exported {count(done.sessions, 'session')} with {count(done.items, 'item')}.")
    if encrypted:
        complain("What is stored is encrypted, and the export is plain text: guard it as you guard the keys.")


def import_(
    file: Annotated[str | None, typer.Argument(help="What `export` wrote; - for stdin.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Instead of a file: where a session of the SDK stores.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="With --from: whose the sessions will be.")] = None,
    on_conflict: Annotated[
        Literal["refuse", "skip", "replace"], typer.Option(help="For a session whose stored history is another one.")
    ] = "refuse",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
) -> None:
    """Bring exported sessions in, or those of the SDK's own session classes. Importing again changes nothing."""
    if (file is None) == (source is None):
        raise typer.BadParameter("Name a file, or an address with --from.", param_hint="FILE")
    if source is not None:
        _import_from(source, user or "", on_conflict, dry_run)
    elif user is not None:
        raise typer.BadParameter("A file says itself whose its sessions are.", param_hint="--user")
    elif file is not None:
        _import_file(file, on_conflict, dry_run)


def _import_file(file: str, on_conflict: OnConflict, dry_run: bool) -> None:
    from ..transfer.file import check, reading
    from ..transfer.sessions import import_sessions

    with reading(file) as source:
        places = check(source, command_settings().session_max_item_bytes)
        with _tallied(len(places), dry_run) as tally:
            with_store(
                lambda store: import_sessions(
                    store, source, places, on_conflict=on_conflict, dry_run=dry_run, report=tally.add
                )
            )


def _import_from(url: str, user: str, on_conflict: OnConflict, dry_run: bool) -> None:
    from ..sessions.records import SessionRef
    from ..transfer.sdk import import_from, open_source

    SessionRef(user, "any").check()
    left = 0

    def left_out(session_id: str, row: int | None, reason: str) -> None:
        nonlocal left
        left += 1
        complain(f"Left out: {f'row {row} of ' if row else ''}session {name(session_id, None)} ({reason.rstrip('.')}).")

    async def run(store: SessionStore) -> None:
        async with open_source(url) as source:
            ids = await source.session_ids()
            with _tallied(len(ids), dry_run) as tally:
                await import_from(
                    source,
                    store,
                    ids,
                    user_id=user,
                    on_conflict=on_conflict,
                    dry_run=dry_run,
                    report=tally.add,
                    left_out=left_out,
                )

    with_store(run)
    if left:
        raise CommandError(f"Skipped {left} rows or sessions (listed above); the source is unchanged.")


class _Tally:
    """Counts what becomes of the sessions, while a progress bar shows it."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.items: Counter[Outcome] = Counter()
        self._advance = advance

    def add(self, ref: SessionRef, outcome: Outcome, items: int = 0) -> None:
        self.outcomes[outcome] += 1
        self.items[outcome] += items
        self._advance(1)
        if outcome == "conflict":
            complain(f"Conflict: {name(ref.session_id, ref.user_id)} is stored with another history.")

    def told(self, outcome: Outcome) -> str:
        items = f" ({count(self.items[outcome], 'item')})" if self.items[outcome] else ""
        return f"{self.outcomes[outcome]} {outcome}{items}"


@contextmanager
def _tallied(total: int, dry_run: bool) -> Iterator[_Tally]:
    """Count outcomes while the block runs, and say at its end what they were.

    Raises:
        CommandError: There were conflicts.
    """
    with progress("Importing", total) as advance:
        tally = _Tally(advance)
        try:
            yield tally
        except BaseException:
            if finished := tally.outcomes.total():
                complain(f"Stopped after {finished} of {total} sessions. Run the command again to continue.")
            raise
    done = [tally.told(outcome) for outcome in sorted(tally.outcomes)]
    note(f"{'It would be' if dry_run else 'Done'}: {', '.join(done) or 'nothing in it'}.")
    if tally.outcomes["conflict"]:
        raise CommandError("Sessions in conflict were left as they are. --on-conflict skip or replace decides.")
