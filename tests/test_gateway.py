"""The gateway of the Supabase variant's docker-compose.yml, run by a real nginx in front of a real PostgREST."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml

from .conftest import Install, Project, embedded_server, free_port, installed_program, serving

_TOKENS = """if True:
    import json, sys
    from my_agent.dev.supabase import sign
    print(json.dumps([sign({"role": role, "exp": 4102444800}, sys.argv[1]) for role in ("service_role", "anon")]))
"""


@contextmanager
def nginx(template: str, variables: dict[str, str], folder: Path) -> Iterator[str]:
    """The address of an nginx with this configuration, filled in as its image does it."""
    program, port = installed_program("nginx", "nginx-light"), free_port()
    variables = {**variables, "LISTEN": f"127.0.0.1:{port}"}
    filled = re.sub(r"\$\{(\w+)\}", lambda name: variables[name[1]], template)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    around = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths}\n"
    config = folder / "nginx.conf"
    config.write_text(f"{around}{filled}\n}}\n")
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    command = ["--", program, "-p", str(folder), "-c", str(config), *user]
    with serving(command, port, folder / "nginx.log"):
        yield f"http://127.0.0.1:{port}"


def status(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers)) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def test_the_gateway_of_the_compose_file_gives_supabases_addresses_and_keys(installed: Install, tmp_path: Path) -> None:
    project = installed("supabase")
    gateway = yaml.safe_load(project.read("docker-compose.yml"))["services"]["gateway"]["environment"]
    template = project.read("supabase/local/gateway.conf.template")
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(gateway)
    with embedded_server(project, tmp_path / "dev") as server:
        secret = server["SUPABASE_JWT_SECRET"]
        service_role, anon = json.loads(project.run(".venv/bin/python", "-c", _TOKENS, secret))
        postgrest = server["POSTGREST_URL"].removeprefix("http://")
        variables = {**gateway, "POSTGREST": postgrest, "SERVICE_ROLE_TOKEN": service_role, "ANON_TOKEN": anon}
        project.run(
            "uv", "run", "my-agent", "db", "upgrade", SUPABASE_DB_URL=server["SUPABASE_DB_URL"], SUPABASE_URL="http://x"
        )
        with nginx(template, variables, tmp_path) as url:
            for key in (gateway["SUPABASE_SECRET_KEY"], service_role):
                to_it = {"SUPABASE_URL": url, "SUPABASE_KEY": key}
                assert "Ada!" in project.run("uv", "run", "my-agent", "chat", "My name is Ada", **to_it)
                assert "Your name is Ada." in project.run("uv", "run", "my-agent", "chat", "What is my name?", **to_it)
            table = f"{url}/rest/v1/agent_sessions"
            assert status(table) == status(table, apikey="sb_secret_made_up") == 401
            for key in (gateway["SUPABASE_PUBLISHABLE_KEY"], anon):
                assert status(table, apikey=key) == 401  # known, and allowed nothing
                assert status(table, apikey=key, Authorization=f"Bearer {service_role}") == 200


def test_the_tokens_of_the_compose_file_fit_its_secret(installed: Install) -> None:
    project = installed("supabase")
    services = yaml.safe_load(project.read("docker-compose.yml"))["services"]
    secret = services["postgrest"]["environment"]["PGRST_JWT_SECRET"]
    tokens = [services["gateway"]["environment"][name] for name in ("SERVICE_ROLE_TOKEN", "ANON_TOKEN")]
    assert tokens == json.loads(Project(project.path).run(".venv/bin/python", "-c", _TOKENS, secret))
