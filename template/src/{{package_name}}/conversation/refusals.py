"""What the API refused in a request, and the same request without it.

A history that contains one thing that the API does not take (a link that is dead by now, reasoning that it no longer
decrypts) would otherwise fail at every turn from then on. The texts of the errors are those of public reports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import openai
from agents.items import TResponseInputItem

from ..sessions.strings import MAX_STRING, cut, is_text, long_strings
from .items import close, field, is_user_message, kind, may_lose_id, without_id, without_part

_STATUS = (None, 400, 404)
"""None: the error came in the middle of a stream."""
_PLACE = re.compile(r"^input\[(\d+)\](?:\.(content|output)\[(\d+)\])?")
_LENGTH = re.compile(r"maximum length (\d+)")
_URL = re.compile(r"https?://[^\s'\"<>]+")
_IMAGE_GONE = "[An image or file was here. It can no longer be loaded.]"
_TOO_LONG = "[A file was here. It is too large.]"


class Repaired(NamedTuple):
    """A request that the API may take."""

    items: list[TResponseInputItem]
    """All items but what was refused. Some may be changed: copies, without an id or with a text in the place of a part.

    A session input callback that returns them must put them into its `history` list as well, or the Runner stores the
    changed ones as if they were new.
    """
    what: list[str]
    """What is missing, as short sentences without content, for a log line."""


def without_refused(error: Exception, items: Sequence[TResponseInputItem], *, new_messages: int = 1) -> Repaired | None:
    """The items without what the API refused, and without what cannot be sent alone then.

    The API names one thing at a time. What probably fails for the same reason goes with it, so that one retry is mostly
    enough; a caller that wants to try again calls this with the next error and `Repaired.items`.

    Args:
        error: What the model call raised.
        items: The `input` of that call. Nothing is changed in it.
        new_messages: How many of the last user messages are what the user says in this turn.

    Returns:
        None if the error is about something else, or about a new message: then the person has to change it.
    """
    if not isinstance(error, openai.APIError) or getattr(error, "status_code", None) not in _STATUS:
        return None
    draft = _Draft(items, new_messages)
    said, code, param = _message(error), _text(error.code), _text(error.param)
    named = draft.named(said)
    if code == "context_length_exceeded":
        return None
    if code == "string_above_max_length" or "string too long" in said:
        draft.shorten(param, said)
    elif code == "invalid_encrypted_content" or ("encrypted content" in said and "could not be verified" in said):
        draft.leave_out_undecryptable(said)
    elif "without its required following item" in said:
        draft.leave_out(index for index in named if kind(items[index]) == "reasoning")
    elif "without its required 'reasoning' item" in said:
        draft.unlink(index for index in named if may_lose_id(items[index]))
        draft.leave_out(index for index in named if not may_lose_id(items[index]))
    elif re.search(r"\bno tool (output|call) found for\b", said, re.IGNORECASE):
        draft.leave_out(close(items).gone or named)
    elif re.search(r"\bitem with id '?[\w-]+'? not found", said, re.IGNORECASE):
        draft.leave_out_stale()
    elif "while downloading" in said or param == "url":
        draft.replace_links(said)
    elif place := _PLACE.match(param):
        draft.leave_out_at(place)
    return draft.done()


class _Draft:
    """The items, and what is going to be missing or changed."""

    def __init__(self, items: Sequence[TResponseInputItem], new_messages: int) -> None:
        self.items = items
        messages = [index for index, item in enumerate(items) if is_user_message(item)]
        self.new = set(messages[-new_messages:]) if new_messages > 0 else set()
        self.gone: dict[int, str] = {}
        self.changed: dict[int, TResponseInputItem] = {}
        self.parts = 0
        self.cut = 0

    def named(self, said: str) -> list[int]:
        """Items whose id or call id is in a message."""
        words = set(re.findall(r"[\w-]+", said))
        names = ("id", "call_id", "approval_request_id")
        return [index for index, item in enumerate(self.items) if any(field(item, name) in words for name in names)]

    def leave_out(self, indexes: Any) -> None:
        self.gone |= dict.fromkeys(indexes, "refused")

    def unlink(self, indexes: Any) -> None:
        """Take ids away, by which the API looks for the reasoning of an item; also of others of the same answer."""
        for index in list(indexes):
            for step in (range(index, -1, -1), range(index, len(self.items))):
                for other in step:
                    if not may_lose_id(self.items[other]):
                        break
                    self.changed[other] = without_id(self.items[other])

    def leave_out_undecryptable(self, said: str) -> None:
        """All encrypted reasoning: with a new key or another account, none of it can be decrypted."""
        sealed = [index for index, item in enumerate(self.items) if isinstance(field(item, "encrypted_content"), str)]
        refused = set(self.named(said)) & set(sealed)
        if excerpt := re.search(r"encrypted content (\S+?)\.\.\.(\S+) could not", said):
            for index in sealed:
                text = field(self.items[index], "encrypted_content")
                if text.startswith(excerpt[1]) and text.endswith(excerpt[2]):
                    refused.add(index)
        self.leave_out(refused | {index for index in sealed if kind(self.items[index]) == "reasoning"})

    def leave_out_stale(self) -> None:
        """What the API was to look up by its id and no longer has: reasoning without its content, and all other ids."""
        for index, item in enumerate(self.items):
            what = kind(item)
            if what == "item_reference" or (what == "reasoning" and not field(item, "encrypted_content")):
                self.leave_out([index])
            elif may_lose_id(item):
                self.changed[index] = without_id(item)

    def replace_links(self, said: str) -> None:
        """Links that the API could not download; and older ones to the same host, which probably expired before."""
        links = [(index, place, link) for index, item in enumerate(self.items) for place, link in _links(item)]
        found = [url.rstrip(".,") for url in _URL.findall(said)]
        dead = [
            each
            for each in links
            if any(each[2] == url or (len(url) > 20 and each[2].startswith(url)) for url in found)
        ]
        if any(index in self.new for index, _, _ in dead):
            self.leave_out(self.new)
            return
        # Without an address in the message, it may be any of them.
        hosts = {urlsplit(link).netloc for _, _, link in dead}
        newest = max((index for index, _, _ in dead), default=len(self.items))
        for index, (name, part), link in links:
            if index not in self.new and index <= newest and (not dead or urlsplit(link).netloc in hosts):
                self._replace(index, name, part, _IMAGE_GONE)

    def leave_out_at(self, place: re.Match[str]) -> None:
        index = int(place[1])
        if index >= len(self.items):
            return
        if index in self.new or place[2] is None:
            self.leave_out([index])
        else:
            self._replace(index, place[2], int(place[3]), _IMAGE_GONE)

    def shorten(self, param: str, said: str) -> None:
        """Cut what is too long, or leave out what cannot be cut."""
        place, length = _PLACE.match(param), _LENGTH.search(said)
        named = int(place[1]) if place else None
        for index, item in enumerate(self.items):
            limit = int(length[1]) if length and index == named else MAX_STRING
            for path in list(long_strings(item, limit)):
                if index in self.new:
                    if index == named:
                        self.leave_out([index])
                elif is_text(item, path):
                    self.changed[index] = cut(self.changed.get(index, item), path, limit)
                    self.cut += 1
                elif len(path) > 2 and isinstance(path[1], int):
                    self._replace(index, str(path[0]), path[1], _TOO_LONG)
                else:
                    self.leave_out([index])

    def done(self) -> Repaired | None:
        if not (self.gone or self.changed) or not self.new.isdisjoint(self.gone):
            return None
        items = [self.changed.get(index, item) for index, item in enumerate(self.items)]
        changes = close(items, self.gone)
        unlinked = {*changes.unlinked, *(i for i in self.changed if items[i].keys() < self.items[i].keys())}
        kept = [changes.unlinked.get(i, item) for i, item in enumerate(items) if i not in changes.gone]
        kinds = {i: kind(self.items[i]) for i in changes.gone}
        told = [
            ("Left out", sum(what == "reasoning" for what in kinds.values()), "reasoning item"),
            ("Left out", sum(what != "reasoning" for what in kinds.values()), "other item"),
            ("Replaced by a note", self.parts, "image or file"),
            ("Cut", self.cut, "long text"),
            ("Sent without an id", len(unlinked - changes.gone.keys()), "item"),
        ]
        return Repaired(kept, [f"{deed}: {count} {noun}{'s' * (count > 1)}." for deed, count, noun in told if count])

    def _replace(self, index: int, name: str, part: int, text: str) -> None:
        changed = without_part(self.changed.get(index, self.items[index]), name, part, text)
        if changed is None:
            self.leave_out([index])  # a screenshot is all that its item has
        else:
            self.changed[index] = changed
            self.parts += 1


def _links(item: TResponseInputItem) -> list[tuple[tuple[str, int], str]]:
    """Images and files of an item that the API has to download: where they are, and their address."""
    found = []
    for name in ("content", "output"):
        value = field(item, name)
        for index, part in enumerate(value if isinstance(value, list) else [value]):
            for key in ("image_url", "file_url"):
                link = part.get(key) if isinstance(part, dict) else None
                if isinstance(link, str) and link.startswith(("http://", "https://")):
                    found.append(((name, index), link))
    return found


def _text(value: object) -> str:
    """A field of the API's error, which a server of others may fill with anything."""
    return value if isinstance(value, str) else ""


def _message(error: openai.APIError) -> str:
    body = error.body
    message = cast(dict[str, Any], body).get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else error.message
