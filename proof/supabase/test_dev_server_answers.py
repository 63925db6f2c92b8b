"""The development server's Supabase leaves nothing open of the answers that it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError

import pytest

from my_agent.dev import supabase as devserver_supabase


def test_a_refusal_is_an_answer_and_closed(project: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 warns of one that is not: a ResourceWarning in every program that starts the server."""
    refusals: list[HTTPError] = []
    ask = devserver_supabase._without_proxy.open

    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            return ask(*arguments, **options)
        except HTTPError as refusal:
            refusals.append(refusal)
            raise

    monkeypatch.setattr(devserver_supabase._without_proxy, "open", watched)
    assert devserver_supabase._status(f"{project['SUPABASE_URL']}/rest/v1/") == 401
    (refusal,) = refusals
    assert refusal.fp.closed
