"""Python runs this at the start of every process whose PYTHONPATH leads here: driver, Ray and workers.
Ranks of a training run, which `ranks.py` forks, import it.

It counts what the processes of one run do to files of one kind, and at the n-th time kills (`CRASH_MOMENT`,
written by `crash.moments`); or it pauses each time a picture is opened, so that a test can act meanwhile
(`CRASH_PAUSE_S`). The product knows nothing of it.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def install(moment: dict[str, Any]) -> None:
    pattern = re.compile(moment["pattern"])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != moment["event"]:
            return
        path = arguments[moment["argument"]]
        counted = isinstance(path, str | os.PathLike) and pattern.search(os.fspath(path))
        if counted and _count(moment["counter"]) == moment["nth"]:
            _die(moment, os.fspath(path))

    sys.addaudithook(hook)


def _count(counter: str) -> int:
    """How many times it has happened, this one too, in all processes: a byte is appended for each."""
    file = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, b".")
        return os.lseek(file, 0, os.SEEK_CUR)
    finally:
        os.close(file)


def _die(moment: dict[str, Any], path: str) -> None:
    def kill() -> None:
        time.sleep(moment["delay_s"])
        Path(moment["fell"]).write_text(f"{moment['victim']} at {moment['event']} of {path}\n")
        for victim in victims(moment["victim"]):
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue

    if moment["delay_s"]:
        threading.Thread(target=kill, daemon=True).start()
    else:
        kill()


def victims(name: str) -> list[int]:
    """Process ids; this process comes last."""
    if name == "process":
        return [os.getpid()]
    if name == "driver":
        return [int(os.environ["CRASH_DRIVER"])]
    if name == "raylet":
        return [_ancestor("raylet")]
    if name.startswith("rank"):
        chosen = Path(os.environ["CRASH_RANKS"]).glob("rank *" if name == "ranks" else name)
        return sorted((int(path.read_text()) for path in chosen), key=os.getpid().__eq__)
    mine, session = os.getpid(), os.getsid(0)
    return [*(pid for pid in processes() if pid != mine and _session(pid) == session), mine]


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _ancestor(command: str) -> int:
    pid = os.getppid()
    while command not in Path(f"/proc/{pid}/comm").read_text():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def pause(seconds: float) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".jpg"):
            time.sleep(seconds)

    sys.addaudithook(hook)


if "CRASH_PAUSE_S" in os.environ:
    pause(float(os.environ["CRASH_PAUSE_S"]))
if "CRASH_MOMENT" in os.environ:
    os.environ.setdefault("CRASH_DRIVER", str(os.getpid()))  # the first process; Ray hands it on
    install(json.loads(os.environ["CRASH_MOMENT"]))
