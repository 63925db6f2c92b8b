"""Renders a project and holds a conversation in two processes: the second one remembers what the first one was told."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from project import BUILD, fresh_project, tool_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="postgres")
    backend = parser.parse_args().backend
    store = {"postgres": "PostgreSQL", "redis": "Redis", "supabase": "Supabase"}.get(backend, backend)
    folder = fresh_project(BUILD / "demo" / backend, backend=backend)
    print(f"A new project for {store}: {folder.relative_to(BUILD.parent)}\n")

    def run(command: str) -> str:
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=tool_environment(), stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(f"`{command}` failed with exit code {done.returncode}.")
        return done.stdout

    run("uv sync --quiet")
    run('uv run my-agent chat --session demo "My name is Ada"')
    answer = run('uv run my-agent chat --session demo "What is my name?"')
    run("uv run my-agent sessions list")
    if "Ada" not in answer:
        sys.exit("The second process did not remember the first one.")
    print(f"The second process remembered what the first one was told: it read it from {store}.")


if __name__ == "__main__":
    main()
