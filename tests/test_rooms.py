"""The rooms of a project and the doors between them, as DESIGN and AGENTS.md have it: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .conftest import DISTINCT, Install, Project, Render

DRIVERS = {"asyncpg", "redis", "supabase", "postgrest", "httpx", "hiredis"}
ABOVE = ("cli", "web", "transfer", "conversation", "app", "agent", "dev", "settings")
"""What `sessions/` may not know, so that it can be lifted out."""

Imports = Mapping[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name, without the package's own."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path, name: str, known: Mapping[str, Path]) -> Iterator[str]:
    """What a module imports: modules of the package by their dotted names, others by the name of their distribution.

    Those inside functions and for type checkers count as well.
    """
    inside = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            parts = inside.split(".") if inside else []
            base = [*parts[: len(parts) - node.level + 1], *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in known else ".".join(base)


def imports_of(package: Path) -> Imports:
    known = modules(package)
    return {name: set(imported(file, name, known)) - {name} for name, file in known.items()}


def circles(imports: Imports) -> list[list[str]]:
    """Groups of modules that import each other, by whatever way."""
    reach: dict[str, set[str]] = {}
    for name in imports:
        todo, seen = [name], set[str]()
        while todo:
            for other in imports[todo.pop()]:
                if other in imports and other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[name] = seen
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other])) for name in imports if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def package_of(project: Project) -> Path:
    return next((project.path / "src").iterdir())


@pytest.mark.parametrize("variant", DISTINCT)
def test_there_is_no_circle_of_imports(rendered: Install, variant: str) -> None:
    assert circles(imports_of(package_of(rendered(variant)))) == []


def test_a_circle_would_be_found(render: Render) -> None:
    package = package_of(render())
    errors = package / "sessions/errors.py"
    errors.write_text(errors.read_text() + "\n\ndef late() -> None:\n    from .session import StoredSession\n")
    assert [group for group in circles(imports_of(package)) if {"sessions.errors", "sessions.session"} <= {*group}]


@pytest.mark.parametrize("variant", DISTINCT)
def test_the_doors_are_kept(rendered: Install, variant: str) -> None:
    imports = imports_of(package_of(rendered(variant)))
    broken = []
    for name, others in imports.items():
        room = name.partition(".")[0]
        for other in others:
            target = other.partition(".")[0] if other in imports else ""
            wrong = (
                (other in DRIVERS and not name.startswith(("sessions.", "dev.")))
                or (other in DRIVERS and name.startswith("sessions.") and name.count(".") < 2)
                or (room == "sessions" and target in ABOVE)
                or (room == "transfer" and target not in ("", "transfer", "sessions"))
                or (room == "conversation" and target in ("cli", "web", "transfer", "app", "dev"))
                or (room == "dev" and target not in ("", "dev"))
                or (target == "dev" and room not in ("dev", "app", "offline"))
                or (target == "cli" and room not in ("cli", "__main__"))
            )
            if wrong:
                broken.append(f"{name} imports {other}")
    assert broken == []
