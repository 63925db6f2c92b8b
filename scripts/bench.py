"""Renders a project for each backend and runs `bench/` in its environment, with the SDK's own session beside it."""

from __future__ import annotations

import argparse
import subprocess
import sys

from project import BUILD, ROOT, fresh_project, tool_environment

EXTRAS = {"postgres": ("--with", "sqlalchemy[asyncio]"), "redis": (), "supabase": ()}
"""What the SDK's session needs besides the project's own dependencies."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=list(EXTRAS))
    parser.add_argument("--items", type=int, help="measure a store of so many items, beside one of few")
    chosen = parser.parse_args()
    for backend in chosen.backends:
        folder = fresh_project(BUILD / "bench" / backend, backend=backend)
        what = ["many.py", backend, str(chosen.items)] if chosen.items else ["run.py", backend]
        command = ["uv", "run", "--quiet", *EXTRAS[backend], "python", f"{ROOT}/bench/{what[0]}", *what[1:]]
        environment = {**tool_environment(), "PYTHONPATH": str(ROOT)}  # for what it shares with the proof
        if code := subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
