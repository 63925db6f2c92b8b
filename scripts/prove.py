"""Runs `proof/` on the real servers of a backend: in a project that is rendered for it, or in one of yours."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from project import BUILD, PROOF_FOLDERS, PYTEST, fresh_project, lay_proof, tool_environment

PINNED = ["asyncpg", "httpx", "openai-agents", "redis[hiredis]", "supabase"]
"""What projects have an upper bound for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=PROOF_FOLDERS, help="which, unless --project names a project")
    parser.add_argument("--only", metavar="WORD", help="only files whose path contains this word")
    parser.add_argument("--encryption", action="store_true", help="with the answer encryption")
    parser.add_argument("--web", action="store_true", help="with the answer web")
    parser.add_argument("--newest", action="store_true", help="with the newest SDK and drivers, whatever the pins say")
    parser.add_argument(
        "--project", type=Path, help="a project made from this version of the template; it is not changed"
    )
    arguments, more = parser.parse_known_args()
    if arguments.project is None:
        name = arguments.backend + ("-encrypted" if arguments.encryption else "") + ("-web" if arguments.web else "")
        answers = {"encryption": str(arguments.encryption), "web": str(arguments.web)}
        project = fresh_project(BUILD / "prove" / name, backend=arguments.backend, **answers)
        if arguments.newest:
            with (project / "pyproject.toml").open("a") as file:
                file.write(f"\n[tool.uv]\noverride-dependencies = {json.dumps(PINNED)}\n")
    elif (arguments.project / ".copier-answers.yml").is_file():
        project = arguments.project.resolve()
    else:
        sys.exit(f"{arguments.project} is not a project made from this template: it has no .copier-answers.yml.")
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        command = lay_proof(Path(folder), project)
        files = sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("test_*.py"))
        chosen = [file for file in files if arguments.only is None or arguments.only in file]
        if not chosen:
            sys.exit(f"No file of proof/ has {arguments.only!r} in its path. There are: {', '.join(files)}")
        done = subprocess.run([*command, *PYTEST, *more, *chosen], cwd=folder, env=tool_environment(), check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
