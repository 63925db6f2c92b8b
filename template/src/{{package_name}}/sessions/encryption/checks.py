"""Are the keys there, and the right ones?"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..errors import Check, SessionStoreError, SettingMissing, WrongKey
from ..store import SessionStore
from .cipher import NoKey, how_to_reencrypt
from .store import EncryptedStore, NotEncrypted


async def checked(checks: AsyncGenerator[Check, None], inner: SessionStore) -> AsyncGenerator[Check, None]:
    """The checks of the server, and one of the keys if the server can be asked."""
    usable = True
    async with aclosing(checks) as found:
        async for check in found:
            usable = usable and check.state != "fail"
            yield check
    if usable:
        yield await check_encryption(EncryptedStore(inner))


async def check_encryption(store: EncryptedStore) -> Check:
    """Whether the keys of the settings open what is stored, and whether anything is left to do."""
    try:
        await store.open()
        kept = await store.canary() or ""
    except SessionStoreError as error:
        return Check("encryption", "fail", _headline(error), str(error))
    finally:
        await store.close()
    cipher = store.keys.cipher
    newest, *older = cipher.names
    what = f"Sessions are encrypted with key {newest}"
    if not cipher.is_newest(kept):
        return Check("encryption", "warn", f"{what}, but not the older ones.", f"{how_to_reencrypt()}.")
    if store.keys.session_encryption_allow_plaintext:
        what = f"{what}, but plain text is read as well: who can write to the database can insert messages."
        todo = f"{how_to_reencrypt()}, then unset SESSION_ENCRYPTION_ALLOW_PLAINTEXT."
        return Check("encryption", "warn", what, todo)
    if older:
        what = f"{what}; {', '.join(older)} can go, as soon as every process writes with it"
    return Check("encryption", "ok", f"{what}.")


def _headline(error: SessionStoreError) -> str:
    match error:
        case NotEncrypted():
            return "What is stored is not encrypted yet."
        case NoKey():
            return "No key is set."
        case SettingMissing():
            return "A key cannot be used."
        case WrongKey():
            return "The keys are not those of the stored sessions."
    return "The keys cannot be compared with what is stored."
