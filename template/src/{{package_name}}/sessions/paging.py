"""Where to go on: cursors for listings, and places in a session."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import NamedTuple

from .records import SessionInfo, check_aware
from .refs import SessionRef


def encode_cursor(last: SessionInfo) -> str:
    """A cursor for the page after `last`."""
    place = [last.updated_at.isoformat(), last.user_id, last.session_id]
    return urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_cursor(cursor: str) -> tuple[datetime, str, str]:
    """When the last session seen was written, its user id, its session id.

    Raises:
        ValueError: Invalid cursor.
    """
    try:
        updated_at, user_id, session_id = json.loads(urlsafe_b64decode(cursor))
        return check_aware(datetime.fromisoformat(updated_at)), str(user_id), str(session_id)
    except (ValueError, TypeError):
        raise ValueError("Invalid cursor. Pass the `next_cursor` of an earlier page.") from None


class Place(NamedTuple):
    """A row of a session whose number is known, so that the rows after it are found without counting from the first.

    Rows are only removed from the end: as long as this one exists, its number stays.
    """

    ref: SessionRef
    row_id: int | None = None
    """None: the place before the first row."""
    rows: int = 0
    """How many rows there are up to this one."""
