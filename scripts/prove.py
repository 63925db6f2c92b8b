"""Renders a project, lays `proof/` over it and runs it there, on the backend's real servers."""

from __future__ import annotations

import argparse
import subprocess
import sys

from project import BUILD, PROOF_FOLDERS, fresh_project, lay_proof_over, tool_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=PROOF_FOLDERS)
    parser.add_argument("--only", metavar="WORD", help="only files whose path contains this word")
    parser.add_argument("--encryption", action="store_true", help="with the answer encryption")
    arguments, more = parser.parse_known_args()
    name = arguments.backend + ("-encrypted" if arguments.encryption else "")
    folder = fresh_project(BUILD / "prove" / name, backend=arguments.backend, encryption=str(arguments.encryption))
    lay_proof_over(folder, arguments.backend)
    files = sorted(str(file.relative_to(folder)) for file in (folder / "proof").rglob("test_*.py"))
    chosen = [file for file in files if arguments.only is None or arguments.only in file]
    if not chosen:
        sys.exit(f"No file of proof/ has {arguments.only!r} in its path. There are: {', '.join(files)}")
    command = ["uv", "run", "--quiet", "pytest", "-q", "-n", "2", *more, *chosen]
    sys.exit(subprocess.run(command, cwd=folder, env=tool_environment(), check=False).returncode)


if __name__ == "__main__":
    main()
