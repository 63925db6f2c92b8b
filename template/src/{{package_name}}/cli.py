"""The command line. What a command needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys
from importlib import metadata
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .cli_db import db
from .cli_sessions import sessions
from .cli_transfer import export_, import_
from .terminal import PlainLog, answer, complain

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""


class Commands(TyperGroup):
    """Turns every error that a person can act on into one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            complaint = _complaint(error)
            if complaint is None:
                raise  # a mistake of ours, or one of Typer's own
            complain(f"Error: {complaint}")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Talk to the agent, and look after its conversations.",
)
sessions.command("export")(export_)
sessions.command("import")(import_)
app.add_typer(sessions, name="sessions")
app.add_typer(db, name="db")


def _version(asked: bool) -> None:
    if asked:
        try:
            answer(metadata.version(__package__ or ""))
        except metadata.PackageNotFoundError:
            complain("Error: This package is not installed, so it has no version. Run `uv sync`.")
            raise typer.Exit(1) from None
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="What to say. Without it: a conversation, or stdin.")] = None,
    session: Annotated[str, typer.Option("--session", "-s", help="Which conversation to go on with.")] = "default",
    user: Annotated[str, typer.Option("--user", "-u", help="Whose conversation.")] = "",
) -> None:
    """Talk to the agent. It remembers the session."""
    from .chat import converse, message_from_stdin, say

    if message is None and sys.stdin.isatty():
        converse(session, user)
        return
    message = message_from_stdin() if message is None else message
    if not message.strip():
        raise typer.BadParameter("The message is empty.", param_hint="MESSAGE")
    say(message, session, user)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check the settings, the database and the model; say what to do about what is wrong."""
    from .doctor import print_diagnosis

    if not print_diagnosis(as_json):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, handlers=[PlainLog()])
    _mend_streams()
    code: object = 0
    try:
        app()
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    try:
        sys.stdout.flush()
    except OSError:
        # Whoever read our output is gone. Python would try to write the rest once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)  # type: ignore[arg-type]


def _mend_streams() -> None:
    """Have all three streams (Python has none where the caller closed one), and no encoding that can fail."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 - for as long as the program runs
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, TextIOWrapper):
            # A character that the terminal's encoding lacks is spelt out instead of ending the program.
            output.reconfigure(errors="backslashreplace")


def _complaint(error: Exception) -> str | None:
    """What to tell the person about an error; None if it is not theirs to mend."""
    match error:
        case BrokenPipeError():
            return "Whoever read the output is gone; stopped."
        case OSError(strerror=str(reason)):
            return f"{reason}: {error.filename}" if error.filename else reason
    # Every error of this package is written for the person who sees it.
    return str(error) if type(error).__module__.partition(".")[0] == __package__ else None
