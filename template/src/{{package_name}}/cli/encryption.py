"""`sessions new-key` and `sessions reencrypt`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from .console import CommandError, answer, command_settings, count, note, progress

if TYPE_CHECKING:
    from ..sessions.encryption.reencrypt import Report


def new_key() -> None:
    """Print a new key for SESSION_ENCRYPTION_KEYS. Keep it as you keep passwords: without it nothing can be read."""
    from ..sessions.encryption.cipher import new_key

    answer(new_key())


def reencrypt(
    decrypt: Annotated[
        bool, typer.Option("--decrypt", help="Leave everything in plain text, to continue without encryption.")
    ] = False,
) -> None:
    """Encrypt all that is stored with the newest key. Finished sessions stay; the app may keep running."""
    from ..app import prepared, server
    from ..sessions import BackendStore
    from ..sessions.contract import admit_all
    from ..sessions.encryption.reencrypt import reencrypt

    async def run() -> Report:
        with server(loaded, embedded=True) as settings:
            if settings is not loaded:
                await prepared(settings)
            inner = BackendStore(settings)
            inner.guard(admit_all)  # `reencrypt` compares the keys itself
            try:
                with progress("Decrypting" if decrypt else "Encrypting") as advance:
                    return await reencrypt(inner, settings.cipher, decrypt=decrypt, advance=advance)
            finally:
                await inner.close()

    loaded = command_settings()
    done = asyncio.run(run())
    what = "decrypted" if decrypt else "encrypted"
    note(f"{count(done.sessions, 'session')}: {count(done.rewritten, 'session')} {what}, {count(done.rows, 'item')}.")
    if done.unreadable:
        texts = count(done.unreadable, "text")
        raise CommandError(f"Left as it is, because none of the keys opens it: {texts}.")
