"""What `doctor` says of the project and its template: a newer release, an update that is not finished, a lost link."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .sessions.checks import Check

PROJECT = Path(__file__).parents[2]
ANSWERS = ".copier-answers.yml"
_SECONDS = 5
"""How long the template's repository may take to answer."""
_SHORTCUTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)+)")

Version = tuple[int, ...]


def check_drift() -> Iterator[Check]:
    """All checks; none where the app is installed without its project, or called from elsewhere."""
    if not (PROJECT / "pyproject.toml").is_file() or not Path.cwd().is_relative_to(PROJECT):
        return
    if not (PROJECT / ANSWERS).is_file():
        what = f"{ANSWERS} is missing; without it `copier update` does not know what to update."
        yield Check("template", "warn", what, f"Take it back from git: git log --oneline -- {ANSWERS}")
        return
    yield _check_version((PROJECT / ANSWERS).read_text(encoding="utf-8"))
    yield from _check_update()


def _check_version(answers: str) -> Check:
    source, commit = _answer(answers, "_src_path"), _answer(answers, "_commit")
    if source is None or commit is None:
        what = f"{ANSWERS} does not say where the template is, so `copier update` cannot work."
        return Check("template", "warn", what, "Take the lines _src_path and _commit back from git.")
    # After a release `git describe` appends "-3-g1a2b3c4"; a commit without a release before it is a bare hash.
    own = _RELEASE.match(commit)
    if own is None:
        return Check("template", "ok", f"This project follows a template without releases; it is at {commit}.")
    newest = max(_releases(source), default=None)
    if newest is None:
        what = f"This project is at {own[0]} of its template; whether there is a newer release could not be looked up."
        return Check("template", "ok", what)
    if newest > _version(own):
        what = f"This project is at {own[0]} of its template; {'.'.join(map(str, newest))} is out."
        return Check("template", "warn", what, "Read the template's CHANGELOG.md, then: uvx copier update")
    return Check("template", "ok", f"This project is at {own[0]} of its template, which is the newest release.")


def _check_update() -> Iterator[Check]:
    """An update that is not committed: the last moment at which nothing of it can be overlooked."""
    conflicts = sorted({line.split("\t")[1] for line in _git("ls-files", "--unmerged")})
    if conflicts:
        what = f"The update could not merge {', '.join(conflicts)}."
        yield Check("update", "fail", what, "Resolve what is between the conflict markers, then: git add")
    # Relative: the project may be a folder of a repository, and git counts from the top of that.
    removed = _git("diff", "--relative", "--name-only", "--diff-filter=D", "HEAD")
    if not removed or ANSWERS not in _git("diff", "--relative", "--name-only", "HEAD"):
        return
    # Copies and updates, and nothing else, write the answers.
    updates = set(_git("log", "--format=%H", "--", ANSWERS))
    lost = [name for name in removed if set(_git("log", "--format=%H", "--", name)) - updates]
    if lost:
        what = f"The update removed what you had changed: {', '.join(lost)}."
        file = shlex.quote("".join(["HEAD:", *_git("rev-parse", "--show-prefix"), lost[0]]))
        yield Check("update", "warn", what, f"Before you commit, look what of it you need: git show {file}")


def _answer(answers: str, name: str) -> str | None:
    found = re.search(rf"^{name}: *(['\"]?)(.+?)\1 *$", answers, re.MULTILINE)
    return found and found[2]


def _version(release: re.Match[str]) -> Version:
    return tuple(map(int, release[1].split(".")))


def _releases(source: str) -> list[Version]:
    """Those of the template's repository; none if it does not answer."""
    address = source.removeprefix("git+")
    for short, long in _SHORTCUTS.items():
        if source.startswith(short):
            address = f"{long}{source.removeprefix(short).removesuffix('.git')}.git"
    tags = [line.rpartition("refs/tags/")[2] for line in _git("ls-remote", "--tags", "--refs", "--", address)]
    return [_version(release) for release in map(_RELEASE.fullmatch, tags) if release]


def _git(*command: str) -> list[str]:
    """Lines that git prints; none if it fails, takes too long, or would have to ask for a password."""
    program = shutil.which("git")
    if program is None:
        return []
    silent = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours, and the address follows "--"
            [program, "-c", "core.quotePath=false", *command],
            cwd=PROJECT,
            env={**silent, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
