"""Several hosts: the first one that answers and is of the kind that is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest

from my_agent.sessions import PostgresStore, StoreUnavailable
from proof.postgres.fixtures import POOLER, settings_for
from proof.postgres.replicas import replicated
from proof.postgres.wire import wire_to
from proof.support.network import unused_port

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="addresses of its own")


def several(url: str, *hosts: str, query: str = "target_session_attrs=primary") -> str:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return f"postgresql://{login}@{','.join(hosts)}{parts.path}?{query}"


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


@pytest.fixture
def down() -> str:
    return f"127.0.0.1:{unused_port()}"


@pytest.mark.parametrize("query", ["target_session_attrs=primary", "target_session_attrs=read-write", ""])
async def test_a_first_host_that_is_down_is_passed_by(database_url: str, down: str, query: str) -> None:
    for hosts in (
        (down, host_of(database_url)),
        (down, f"[::1]:{unused_port()}", "nowhere.invalid", host_of(database_url)),
    ):
        async with PostgresStore(settings_for(several(database_url, *hosts, query=query))) as store:
            assert await store._call("SELECT 1") == 1


async def test_a_first_host_that_is_silent_is_passed_by(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url):
        wire.silent = True
        begin = monotonic()
        several_hosts = several(database_url, host_of(url), host_of(database_url), query="connect_timeout=1")
        async with PostgresStore(settings_for(several_hosts)) as store:
            assert await store._call("SELECT 1") == 1
        assert monotonic() - begin < 10


async def test_the_primary_is_found_behind_a_standby_and_again_after_a_failover(tmp_path: Path) -> None:
    async with replicated(tmp_path) as pair:
        hosts = [host_of(pair.standby_url), host_of(pair.primary_url)]
        url = several(pair.primary_url, *hosts)
        async with PostgresStore(settings_for(url, session_retry_seconds=30.0)) as store:
            assert await store._call("SELECT pg_is_in_recovery()") is False
            await store.session("s").add_items([{"role": "user", "content": "Hi"}])
            pair.kill_primary()
            await asyncio.gather(
                store.session("s").add_items([{"role": "user", "content": "again"}]), pair.promote_standby()
            )
            assert len(await store.session("s").get_items()) == 2
        # That one is the primary now: a standby is only found where the primary will do as well.
        standby = settings_for(several(url, hosts[0], query="target_session_attrs=standby"), session_retry_seconds=0.0)
        with pytest.raises(StoreUnavailable, match="no server is of the kind that target_session_attrs=standby"):
            await PostgresStore(standby).ping()
        preferred = settings_for(several(url, hosts[0], query="target_session_attrs=prefer-standby"))
        async with PostgresStore(preferred) as store:
            assert await store._call("SELECT pg_is_in_recovery()") is False


async def test_a_standby_is_preferred_where_that_is_asked_for(tmp_path: Path) -> None:
    async with replicated(tmp_path) as pair:
        url = several(
            pair.primary_url,
            host_of(pair.primary_url),
            host_of(pair.standby_url),
            query="target_session_attrs=prefer-standby",
        )
        async with PostgresStore(settings_for(url)) as store:
            assert await store._call("SELECT pg_is_in_recovery()") is True


async def test_when_all_are_down_the_message_names_them_and_no_login(down: str) -> None:
    url = f"postgresql://ada:planted@{down},[::1]:1/app"
    with pytest.raises(StoreUnavailable) as caught:
        await PostgresStore(settings_for(url, session_retry_seconds=0.0)).session("s").get_items()
    assert f"{down},[::1]:1/app" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "ada" not in str(caught.value)
