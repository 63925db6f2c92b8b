"""Keeps one process of the development server running while somebody uses it; `server.py` explains the whole.

Its arguments: DIRECTORY NAME COMMAND... It is run as a script, with the standard library only.
"""

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress

STOP_SECONDS = 20.0  # a checkpoint; who takes longer is stopped the hard way, and the next start recovers


def keep(directory: str, name: str, *command: str) -> None:
    """Start the process, sleep until it ends, SIGTERM arrives or the last user has left, and stop it."""

    def private(file: str) -> int:
        return os.open(os.path.join(directory, file), os.O_RDWR | os.O_CREAT, 0o600)

    log, users, ours, alive = (private(file) for file in (f"{name}.log", "lock", f"{name}.keeper", f"{name}.lock"))
    for file in (log, ours, alive):
        os.truncate(file, 0)
    fcntl.flock(ours, fcntl.LOCK_EX)
    fcntl.flock(alive, fcntl.LOCK_EX)
    # The starter waits for us until here, and the locks stay ours: a fork has the same open files. So the process that
    # remains is a child of init, so it cannot become a zombie.
    if os.fork():
        os._exit(0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.write(ours, str(os.getpid()).encode())
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[alive])  # noqa: S603
    os.write(alive, str(process.pid).encode())
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    try:
        if process.poll() is None:
            fcntl.flock(users, fcntl.LOCK_EX)  # held until we exit: a new user waits, then starts afresh
    finally:
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # politely, at once, by force
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                break


if __name__ == "__main__":
    keep(*sys.argv[1:])
