"""What may be written in REDIS_URL, and what is said about the rest."""

from __future__ import annotations

import pytest

from my_agent.sessions import SettingMissing
from my_agent.sessions.redis.address import parse_address
from my_agent.sessions.redis.connection import RedisConnection
from my_agent.sessions.redis.settings import RedisSettings
from proof.redis.fixtures import settings_for
from proof.redis.servers import PASSWORD, QUOTED


@pytest.mark.parametrize(
    ("url", "kind", "where"),
    [
        ("redis://", "server", "localhost:6379/0"),
        ("redis://h", "server", "h:6379/0"),
        (" redis://:planted@h:1/2\n", "server", "h:1/2"),
        ("REDISS://u:planted@H:1/2", "server", "h:1/2"),
        ("redis://h?db=3", "server", "h:6379/3"),
        ("redis://[::1]:7/0", "server", "::1:7/0"),
        ("unix:///run/r.sock?db=2", "server", "/run/r.sock database 2"),
        ("unix://u:planted@/run/r.sock", "server", "/run/r.sock database 0"),
        ("redis+cluster://h,i:1,[::1]:2", "cluster", "h:6379,i:1,::1:2 (cluster)"),
        ("redis+cluster://[::1],h,[FE80::2]:2", "cluster", "::1:6379,h:6379,fe80::2:2 (cluster)"),
        ("redis+cluster://u:plan[ted]@[::1]:1,[::2],h:3", "cluster", "::1:1,::2:6379,h:3 (cluster)"),
        ("redis+sentinel://h,[::1]:1,[::2]/3?service=main", "sentinel", "main/3 (Sentinels h:26379,::1:1,::2:26379)"),
        ("rediss+cluster://u:planted@h:1/0", "cluster", "h:1 (cluster)"),
        ("redis+sentinel://h,i:1/3?service=main", "sentinel", "main/3 (Sentinels h:26379,i:1)"),
        ("rediss+sentinel://u:planted@h?service=m&sentinel_password=planted", "sentinel", "m/0 (Sentinels h:26379)"),
    ],
)
def test_an_address_is_read(url: str, kind: str, where: str) -> None:
    address = parse_address(url)
    assert (address.kind, address.where) == (kind, where)
    assert address.tls == url.lower().startswith("rediss")
    assert "planted" not in repr(address) + repr(settings_for(url))


def test_special_characters_of_a_password_are_written_with_percent_signs() -> None:
    options = parse_address(f"redis://us%40er:{QUOTED}@h").options
    assert (options["username"], options["password"]) == ("us@er", PASSWORD)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("planted", r"Write redis://user:password@host"),
        ("http://u:planted@h", r"Write redis://"),
        ("redis:planted", r"Write redis://"),
        ("redis://u:plan/ted@h", "%2F"),
        ("redis://u:plan?ted@h", "%3F"),
        ("redis://u:plan#ted@h", "%23"),
        ("redis://:12/planted@h", "%2F"),
        ("redis://:12?planted@h", "%3F"),
        ("redis://:12#planted@h", "%23"),
        ("redis://u:planted@h:port", "not a number from 1 to 65535"),
        ("redis://u:planted@h:0", "not a number from 1 to 65535"),
        ("redis://u:planted@h:99999", "not a number from 1 to 65535"),
        ("redis://u:planted@::1:7", r"not written as \[::1\]"),
        ("redis+cluster://u:planted@h,::1", r"not written as \[::1\]"),
        ("redis+cluster://u:planted@h,[::1", r"not written as \[::1\]"),
        ("redis+cluster://u:planted@h,[::1]2", r"not written as \[::1\]"),
        ("redis+cluster://u:planted@h,i[::1]:2", r"not written as \[::1\]"),
        ("redis+cluster://u:planted@h,[i]:2", r"not written as \[::1\]"),
        ("redis://u:planted@h/name", "number of a database"),
        ("redis://u:planted@h?timeout=planted", "the parameter timeout that this app does not take.*REDIS_TIMEOUT_SEC"),
        ("redis://h?password=planted&planted=1", "a parameter that this app does not take"),
        ("redis://u:planted@h,i", r"several hosts.*redis\+cluster://"),
        ("redis+cluster://u:planted@h,i/1", "only database 0"),
        ("redis+sentinel://u:planted@h", r"\?service="),
        ("redis://u:planted@h?ssl_cert_reqs=none", "rediss://"),
        ("rediss://u:planted@h?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://u:planted@h?ssl_ca_certs=/no/such/file", "does not exist: /no/such/file"),
    ],
)
def test_a_wrong_address_is_explained_without_its_secrets(url: str, says: str) -> None:
    with pytest.raises(SettingMissing, match=rf"(?s)REDIS_URL.*{says}") as caught:
        RedisConnection(settings_for(url))
    assert "plan" not in str(caught.value)


def test_a_missing_address_is_asked_for() -> None:
    with pytest.raises(SettingMissing, match=r"REDIS_URL is not set"):
        RedisConnection(RedisSettings())
