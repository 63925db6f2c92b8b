"""Renders a project for each backend and runs `proof/support/chaos.py` there: a real server, broken again and again."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from project import BUILD, fresh_project, lay_proof, tool_environment

BACKENDS = ("postgres", "redis", "supabase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=BACKENDS)
    parser.add_argument("--appends", default="10000", help="to be acknowledged, for each backend")
    parser.add_argument("--faults", default="200", help="to be made, for each backend")
    arguments = parser.parse_args()
    amounts = ["--appends", arguments.appends, "--faults", arguments.faults]
    failed = []
    for backend in arguments.backends:
        print(f"\n{backend}\n", flush=True)
        folder = fresh_project(BUILD / "chaos" / backend, backend=backend)
        with tempfile.TemporaryDirectory(prefix="chaos-") as place:
            command = [*lay_proof(Path(place), folder), "proof.support.chaos", *amounts]
            if subprocess.run(command, cwd=place, env=tool_environment(), check=False).returncode:
                failed.append(backend)
    if failed:
        sys.exit(f"Chaos won on {', '.join(failed)}.")


if __name__ == "__main__":
    main()
