"""Sealing texts with AES-256-GCM: a reader of the database learns nothing, and changes are detected.

A sealed text is one line of ASCII: `sealed:`, the short name of its key, `:`, and in URL-safe base64 a random nonce of
96 bits, the ciphertext and the tag. It opens only where it was sealed: the purpose, the user and the session are
authenticated with it. With random nonces one key is good for 2**32 texts (NIST SP 800-38D, 8.3): put a new key in front
of the others long before, at a thousand texts a second every month.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from ..errors import SettingMissing, WrongKey, forgets_locals, how_to
from ..records import SEALED, SessionRef, Turn, encode_metadata, key_of
from ..settings import StoreSettings

KEYS = "SESSION_ENCRYPTION_KEYS"
KEY_BYTES = 32
PLAIN = "plain:"
"""Put before a row that is an item in plain text where only sealed ones count."""
SEALED_METADATA = "sealed"
"""The one name under which encrypted metadata are stored."""
_NONCE_BYTES = 12
_EVERYWHERE = SessionRef("", "")
"""Where the canary is sealed: in no session, since each has an id."""

Purpose = Literal["item", "title", "metadata", "canary", "turn"]


class Cipher:
    """Seals with the newest key, opens with any.

    Args:
        keys: Of 32 bytes each, the newest first; at least one.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers: dict[str, AESGCM] = {}
        for key in keys:
            self._ciphers.setdefault(name_of(key), AESGCM(key))
        self.names = list(self._ciphers)
        """The short names of the keys, the newest first."""

    def seal(self, purpose: Purpose, ref: SessionRef, text: str) -> str:
        """The sealed text. It opens for this purpose and in this session only (associated data)."""
        name = self.names[0]
        nonce = os.urandom(_NONCE_BYTES)
        # JSON escapes what no item holds unescaped; other texts may hold NUL and half surrogate pairs as they are.
        data = text.encode("utf-8", "surrogatepass")
        sealed = nonce + self._ciphers[name].encrypt(nonce, data, _place(purpose, ref))
        return f"{SEALED}{name}:{urlsafe_b64encode(sealed).decode()}"

    def open(self, purpose: Purpose, ref: SessionRef, sealed: str) -> str | None:
        """The text that was sealed; None if it was not, or elsewhere, or with another key, or if it was changed."""
        marker, _, data = sealed.partition(":")
        name, _, data = data.partition(":")
        cipher = self._ciphers.get(name)
        if cipher is None or f"{marker}:" != SEALED:
            return None
        try:
            opened = b64decode(data, b"-_", validate=True)
            text = cipher.decrypt(opened[:_NONCE_BYTES], opened[_NONCE_BYTES:], _place(purpose, ref))
        except (InvalidTag, NotBase64, ValueError):
            return None
        return text.decode("utf-8", "surrogatepass")

    def is_newest(self, sealed: str) -> bool:
        """Whether a text names the newest key."""
        return sealed.startswith(SEALED) and key_of(sealed) == self.names[0]

    def seal_row(self, ref: SessionRef, text: str) -> str:
        """A row to store. What `open_row` handed on because it did not open becomes what it was."""
        if text.startswith(SEALED):
            return text
        return text.removeprefix(PLAIN) if text.startswith(PLAIN) else self.seal("item", ref, text)

    def open_row(self, ref: SessionRef, row: str, *, plain: bool) -> tuple[str, bool]:
        """What a stored row says, and True; if it does not open, a text that cannot be mistaken for an item, and False.

        Args:
            plain: Whether rows that were never sealed count.
        """
        if row.startswith(SEALED):
            text = self.open("item", ref, row)
            return (row, False) if text is None else (text, True)
        if plain:
            return row, True
        return PLAIN + row if row.lstrip().startswith("{") else row, False

    def seal_turn(self, ref: SessionRef, turn: Turn) -> Turn:
        """A turn to store. Its content opens under its own id alone."""
        return turn._replace(content=self.seal("turn", ref, json.dumps([turn.id, turn.content])))

    def open_turn(self, ref: SessionRef, stored: Turn, *, plain: bool) -> Turn:
        """The inverse; the content is empty if it does not open.

        Args:
            plain: Whether what was never sealed counts.
        """
        if plain and not stored.content.startswith(SEALED):
            return stored
        text = self.open("turn", ref, stored.content)
        turn_id, content = (None, "") if text is None else json.loads(text)
        return stored._replace(content=content if turn_id == stored.id else "")

    def seal_metadata(self, ref: SessionRef, metadata: Mapping[str, Any]) -> dict[str, str]:
        """Metadata as one sealed value; nothing stays nothing."""
        return {SEALED_METADATA: self.seal("metadata", ref, encode_metadata(metadata))} if metadata else {}

    def open_metadata(self, ref: SessionRef, metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The inverse; None if they do not open."""
        text = self.open("metadata", ref, sealed_metadata(metadata) or "") if metadata else "{}"
        return None if text is None else dict(json.loads(text))

    def seal_canary(self) -> str:
        """A text that shows with which key the store is encrypted."""
        return self.seal("canary", _EVERYWHERE, "")

    def check_canary(self, kept: str | None) -> None:
        """Return if the canary opens.

        Raises:
            WrongKey: It does not.
        """
        if kept is not None and self.open("canary", _EVERYWHERE, kept) is None:
            raise WrongKey(
                f"The stored sessions are encrypted with key {key_of(kept)}, which {KEYS} does not hold "
                f"(it holds {', '.join(self.names)}). Add that key: nothing else can read them."
            )


class NoKey(SettingMissing):
    """Nothing is there to encrypt with."""


class EncryptionSettings(StoreSettings):
    """With which keys sessions are encrypted."""

    session_encryption_keys: SecretStr | None = None
    """32 bytes in URL-safe base64 each, separated by commas, the newest first: it writes, and all of them read."""
    session_encryption_allow_plaintext: bool = False
    """Take what is stored unencrypted for genuine, while encryption is being turned on."""

    @property
    @forgets_locals
    def cipher(self) -> Cipher:
        """What seals and opens.

        Raises:
            NoKey: No keys are set.
            SettingMissing: One is none. Never names a key.
        """
        secret = self.session_encryption_keys
        words = [] if secret is None else secret.get_secret_value().split(",")
        keys = [word.strip() for word in words if word.strip()]
        if not keys:
            raise NoKey(f"{KEYS} is not set. {_how_to_make_a_key()}.")
        decoded = [_decoded(key) for key in keys]
        for number, key in enumerate(decoded, 1):
            if len(key) != KEY_BYTES:
                raise SettingMissing(
                    f"Key {number} of {len(keys)} in {KEYS} is not {KEY_BYTES} bytes in URL-safe base64. "
                    f"{_how_to_make_a_key()}."
                )
        return Cipher(decoded)


def sealed_metadata(metadata: Mapping[str, Any]) -> str | None:
    """The sealed text that stands for metadata; None if these are in plain text."""
    text = metadata.get(SEALED_METADATA) if len(metadata) == 1 else None
    return text if isinstance(text, str) and text.startswith(SEALED) else None


def new_key() -> str:
    """A key as the settings take it."""
    return urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()


def how_to_reencrypt() -> str:
    """What a message says to do about sessions that are not encrypted with the newest key."""
    return how_to(
        "sessions reencrypt", "Run `sessions reencrypt` on this database, in a project made with copier-agent-sessions"
    )


def _how_to_make_a_key() -> str:
    script = "`python -c 'from {package}.encryption.cipher import new_key; print(new_key())'`"
    return f"{how_to('sessions new-key', f'Run {script}')}, which prints a new key"


def name_of(key: bytes) -> str:
    """The short name of a key: 32 bits of a hash over 256 random bits, which do not reveal the key."""
    return hashlib.sha256(key).hexdigest()[:8]


def _decoded(key: str) -> bytes:
    try:
        return b64decode(key.rstrip("=") + "=" * (-len(key.rstrip("=")) % 4), b"-_", validate=True)
    except ValueError:
        return b""


def _place(purpose: Purpose, ref: SessionRef) -> bytes:
    return json.dumps([purpose, *ref]).encode()
