"""Another user, a forged token: what each request may reach."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import jwt
import pytest
from agents import Agent, set_tracing_disabled
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from my_agent.sessions import SessionStore
from proof.support.helpers import texts, user
from proof.support.scripted_model import ScriptedModel, call, say
from proof.support.turns import launch_rocket, launched
from proof.web.serving import SECRET, app_of, serving


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)
    launched.clear()


def token(user_id: str = "ada", key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": user_id, "exp": time.time() + 60, **claims}, key, algorithm=algorithm)


def as_user(user_id: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user_id)}"}


def build(_: Any) -> Agent[Any]:
    return Agent(name="Front", model=ScriptedModel(call("launch_rocket"), say("done")), tools=[launch_rocket])


@pytest.fixture
async def http(store: SessionStore, server_environment: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    app = app_of(server_environment, build, web_jwt_secret=SecretStr(SECRET))
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


# ── Tokens ──────────────────────────────────────────────────────────────────


def unsigned(**header: Any) -> str:
    """A token without a signature, or with one that its own header names."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part(header)}.{part({'sub': 'ada', 'exp': time.time() + 60})}."


FORGED = {
    "none": lambda: unsigned(alg="none", typ="JWT"),
    "None": lambda: unsigned(alg="None"),
    "another secret": lambda: token(key="another secret that is long enough as well"),
    "expired": lambda: token(exp=time.time() - 3600),
    "without an end": lambda: jwt.encode({"sub": "ada"}, SECRET, algorithm="HS256"),
    "not yet": lambda: token(nbf=time.time() + 3600),
    "without a user": lambda: jwt.encode({"exp": time.time() + 60}, SECRET, algorithm="HS256"),
    "an empty user": lambda: token(""),
    "for somebody else": lambda: token(aud="another service"),
    "cut": lambda: token()[:-5],
    "not a token": lambda: "x",
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
async def test_a_forged_token_reaches_nothing(http: httpx.AsyncClient, forged: Any) -> None:
    for path in ("/v1/conversations", "/v1/models", "/v1/export", "/openapi.json"):
        answer = await http.get(path, headers={"Authorization": f"Bearer {forged()}"})
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_without_a_token_only_the_page_and_the_probes_are_there(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/conversations")).status_code == 401
    assert (await http.post("/v1/responses", json={"input": "Hi"})).status_code == 401
    for scheme in ("Basic YTpi", "Bearer", token()):
        assert (await http.get("/v1/models", headers={"Authorization": scheme})).status_code == 401
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/v1/models", headers=as_user("ada"))).status_code == 200


async def test_audience_and_issuer_are_checked(store: SessionStore, server_environment: dict[str, str]) -> None:
    settings: Any = {"web_jwt_secret": SecretStr(SECRET), "web_jwt_audience": "us", "web_jwt_issuer": "https://id"}
    app = app_of(server_environment, **settings)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for claims, status in (
            ({"aud": "us", "iss": "https://id"}, 200),
            ({"aud": ["them", "us"], "iss": "https://id"}, 200),
            ({"aud": "them", "iss": "https://id"}, 401),
            ({"iss": "https://id"}, 401),
            ({"aud": "us", "iss": "https://evil"}, 401),
            ({"aud": "us"}, 401),
        ):
            bearer = {"Authorization": f"Bearer {token(**claims)}"}
            assert (await client.get("/v1/models", headers=bearer)).status_code == status, claims


@contextmanager
def published(keys: list[dict[str, Any]]) -> Iterator[str]:
    """Public keys at an address of loopback."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": keys}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    finally:
        server.shutdown()
        server.server_close()


async def test_public_keys_are_fetched_and_are_no_secrets(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k1", "alg": "RS256"}
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def signed(kid: str) -> str:
        claims = {"sub": "ada", "exp": time.time() + 60}
        return jwt.encode(claims, private, algorithm="RS256", headers={"kid": kid})

    def confused() -> str:
        """Signed with the public key, as if it were a shared secret."""
        head, body, _ = unsigned(alg="HS256", kid="k1").split(".")
        mac = hmac.new(pem, f"{head}.{body}".encode(), hashlib.sha256).digest()
        return f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    with published([public]) as address:
        app = app_of(server_environment, web_jwks_url=address)
        async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
            for made, status in ((signed("k1"), 200), (signed("k2"), 401), (confused(), 401), (token(), 401)):
                bearer = {"Authorization": f"Bearer {made}"}
                assert (await client.get("/v1/models", headers=bearer)).status_code == status


async def test_keys_that_cannot_be_fetched_are_not_the_callers_fault(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    app = app_of(server_environment, web_jwks_url="http://127.0.0.1:1/jwks.json")
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        bearer = {"Authorization": f"Bearer {token()}"}
        answer = await client.get("/v1/models", headers=bearer)
        assert answer.status_code == 503
        assert "127.0.0.1" not in answer.text


async def test_one_key_is_one_user(store: SessionStore, server_environment: dict[str, str]) -> None:
    await store.session("mine").add_items([user("Hi")])
    app = app_of(server_environment, web_api_key=SecretStr("a-key"))
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for given, status in (("a-key", 200), ("a-keY", 401), ("a-key2", 401), ("ä", 401)):
            bearer = [(b"Authorization", f"Bearer {given}".encode())]
            answer = await client.get("/v1/conversations", headers=bearer)
            assert answer.status_code == status, given


# ── Another user ────────────────────────────────────────────────────────────


async def test_another_user_reaches_nothing(http: httpx.AsyncClient, store: SessionStore) -> None:
    ada, bob = as_user("ada"), as_user("bob")
    made = (await http.post("/v1/responses", json={"input": "Launch"}, headers=ada)).json()
    conversation, response = made["conversation"]["id"], made["id"]
    (request,) = made["output"]
    before = await store.session(conversation, user_id="ada").get_items()
    approval = [{"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}]
    first = (await http.get("/v1/conversations?limit=1", headers=ada)).json()
    attacks: list[tuple[str, str, Any]] = [
        ("GET", f"/v1/conversations/{conversation}", None),
        ("POST", f"/v1/conversations/{conversation}", {"title": "mine"}),
        ("DELETE", f"/v1/conversations/{conversation}", None),
        ("GET", f"/v1/conversations/{conversation}/items", None),
        ("POST", f"/v1/conversations/{conversation}/fork", {}),
        ("GET", f"/v1/responses/{response}", None),
        ("POST", f"/v1/responses/{response}/cancel", None),
        ("POST", "/v1/responses", {"input": "Hi", "conversation": conversation}),
        ("POST", "/v1/responses", {"input": "Hi", "previous_response_id": response}),
        ("POST", "/v1/responses", {"input": approval, "previous_response_id": response}),
        ("POST", "/v1/responses", {"input": approval, "conversation": conversation}),
    ]
    for method, path, body in attacks:
        answer = (
            await http.request(method, path, json=body, headers=bob)
            if body is not None
            else await http.request(method, path, headers=bob)
        )
        assert answer.status_code == 404, (method, path, answer.text)
        assert "Launch" not in answer.text
    assert (await http.get("/v1/conversations", headers=bob)).json()["data"] == []
    cursor = first["last_id"] or "x"
    listed = await http.get(f"/v1/conversations?after={cursor}", headers=bob)
    assert listed.status_code == 400 or listed.json()["data"] == []
    assert (await http.get("/v1/export", headers=bob)).content == b""
    await http.delete("/v1/conversations", headers=bob)
    assert await store.session(conversation, user_id="ada").get_items() == before
    assert launched == []
    done = await http.post("/v1/responses", json={"input": approval, "previous_response_id": response}, headers=ada)
    assert done.status_code == 200
    assert launched == [""]


async def test_two_users_with_one_name_for_a_conversation_never_meet(
    http: httpx.AsyncClient, store: SessionStore
) -> None:
    for name in ("ada", "bob"):
        await store.session("same", user_id=name).add_items([user(f"I am {name}")])
    for name in ("ada", "bob"):
        listed = (await http.get("/v1/conversations/same/items", headers=as_user(name))).json()["data"]
        assert [item["content"][0]["text"] for item in listed] == [f"I am {name}"]
    await http.delete("/v1/conversations", headers=as_user("bob"))
    assert texts(await store.session("same", user_id="ada").get_items()) == ["I am ada"]
