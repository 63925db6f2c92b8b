"""No part of a REDIS_URL that may be a secret is printed, logged or kept for a traceback, however it is written."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from my_agent.sessions import RedisSession, RedisSettings, RedisStore, SessionStoreError, SettingMissing
from my_agent.sessions.redis.address import parse_address
from proof.support.command import invoke

MARKER = "TOPSECRET"
NOWHERE = "127.0.0.1:1"
SCHEMES = (
    "redis",
    "rediss",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
    "redis+proxy",
    "rediss+proxy",
    "unix",
)

junk = st.text("ab1@:/?#[]%&=;,.+ \\'\"\n\t{}é", max_size=4)
secret = st.builds("{}{}{}".format, junk, st.just(MARKER), junk)
part = junk | secret
secrets_behind = ("username", "password", "sentinel_username", "sentinel_password", "ssl_password", "db", "token")
query = st.lists(
    # The name of a file that is missing is told.
    st.tuples(st.sampled_from(secrets_behind), secret) | st.tuples(st.just("ssl_ca_certs"), junk),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
urls = st.builds(
    "{}{}{}{}{}@{}{}{}{}".format,
    st.sampled_from(SCHEMES),
    st.sampled_from(("://", "://", "://", ":/", "//", ":")),
    part,
    st.sampled_from((":", ":", "", "%3A")),
    secret,
    st.just(NOWHERE),
    st.sampled_from(("", "/", "/0", "/x")),
    st.sampled_from(("", "?", "?service=main&", f"?service=main;x={MARKER}&")),
    query,
)


class Kept:
    """A URL that is no local variable's repr."""

    def __init__(self, url: str) -> None:
        self.secret = SecretStr(url)

    def __repr__(self) -> str:
        return "Kept()"


def shown(error: BaseException) -> str:
    """All that a tool which reports errors can get at."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def session_of(kept: Kept) -> RedisSession:
    return RedisSession("s", kept.secret.get_secret_value(), settings=RedisSettings(redis_timeout_seconds=0.5))


async def pinged(kept: Kept) -> None:
    config = RedisSettings(redis_url=kept.secret, redis_timeout_seconds=0.5, session_retry_seconds=0.0)
    store = RedisStore(config)
    try:
        await store.ping()
    finally:
        await store.close()


def outcome(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except SessionStoreError as error:
        return shown(error)


@given(url=urls)
@example(url=f"rediss://:{MARKER}@{NOWHERE}username={MARKER}?&ssl_ca_certs={MARKER}")
@settings(max_examples=400, deadline=None)
def test_a_url_that_holds_a_secret_shows_nothing_of_it(url: str) -> None:
    kept = Kept(url)
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        found = [
            outcome(lambda: parse_address(kept.secret.get_secret_value())),
            outcome(lambda: RedisSettings(redis_url=kept.secret).where),
            outcome(lambda: session_of(kept)),
            outcome(lambda: asyncio.run(pinged(kept))),
            repr(RedisSettings(redis_url=kept.secret)),
        ]
    finally:
        root.removeHandler(handler)
    everything = "\n".join((*found, *logged)).lower()
    assert MARKER.lower() not in everything, everything


@given(url=urls, places=st.lists(st.tuples(st.integers(0, 200), st.sampled_from("@:/?#[]%&=;, \n")), max_size=4))
@settings(max_examples=400, deadline=None)
def test_characters_that_got_into_it_anywhere_show_nothing_either(url: str, places: list[tuple[int, str]]) -> None:
    for place, char in places:
        url = url[:place] + char + url[place:]
    kept = Kept(url)
    assert MARKER.lower() not in outcome(lambda: parse_address(kept.secret.get_secret_value())).lower()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ada@contoso.com:{MARKER}@{NOWHERE}/0",
        f"redis://u:pa@{MARKER}:SECRET@{NOWHERE}/0",
        f"redis+cluster://u:pa@{MARKER}:SECRET@{NOWHERE}",
        f"redis://u:{MARKER}/x@{NOWHERE}",
        f"redis://u:{MARKER}?x@{NOWHERE}",
        f"redis://u:{MARKER}%40{NOWHERE}",
        f"redis://{MARKER}%40{NOWHERE}",
    ],
)
async def test_the_doctor_says_how_to_write_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    done = await invoke("doctor")
    assert done.code == 1
    assert "%40" in done.out
    assert "Traceback" not in done.out + done.err
    assert MARKER not in done.out + done.err


@pytest.mark.parametrize(
    "url", ["redis://a@b:p%40s@h", "redis://a%40b:p@s@h", "redis://h?username=a%40b&password=p%40s"]
)
def test_a_login_with_an_at_sign_is_understood(url: str) -> None:
    options = parse_address(url).options
    assert (options["username"], options["password"]) == ("a@b", "p@s")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SettingMissing, match=r"REDIS_URL is not UTF-8"):
        parse_address("redis://u:\udcff@h")
