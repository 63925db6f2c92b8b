"""What a check of the set-up finds."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Check(NamedTuple):
    """One finding: a sentence, and what to do if it is not "ok". Holds no secrets."""

    name: str
    state: Literal["ok", "warn", "fail"]
    says: str
    todo: str = ""
