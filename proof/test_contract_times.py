"""What every store promises of times."""

from __future__ import annotations

from datetime import datetime

import pytest

from my_agent.sessions import SessionKey, SessionStore
from my_agent.sessions.store import Batch, Row


async def test_a_time_without_a_time_zone_is_refused(store: SessionStore) -> None:
    await store.append(SessionKey("", "s"), Batch.of([Row("a")]))
    naive = datetime(2030, 1, 1)
    with pytest.raises(ValueError, match=r"datetime\.now\(UTC\)"):
        await store.prune(naive)
    assert len((await store.list_sessions()).sessions) == 1
