"""Renders a project and runs `bench/` in its environment, with the SDK's own session beside it."""

from __future__ import annotations

import subprocess
import sys

from project import BUILD, ROOT, fresh_project, tool_environment


def main() -> None:
    folder = fresh_project(BUILD / "bench", backend="postgres")
    command = ["uv", "run", "--quiet", "--with", "sqlalchemy[asyncio]", "python", str(ROOT / "bench" / "run.py")]
    environment = {**tool_environment(), "PYTHONPATH": str(folder)}
    sys.exit(subprocess.run(command, cwd=folder, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
