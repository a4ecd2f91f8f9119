"""Ranks of one launch that find each other in a folder, whatever killed launches left in it.

Each draws a name. A follower answers the leader that it reads of, alive or not; the leader greets those who
have answered its own name; and a follower that is greeted by its own name knows that both are of one launch.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from training.evaluation.detections import write_whole

SPEAK_EVERY_S = 15.0
POLL_S = 0.1


@dataclass(frozen=True)
class _Word:
    name: str
    says: str
    to: tuple[str, ...] = ()


def meet(folder: Path, rank: int, world_size: int, says: str) -> dict[int, str]:
    """What ranks of this launch say: all to rank 0, rank 0 to each. Returns once all are there.

    What rank 0 did before is done for all. `folder` is gone afterwards.
    """
    name = uuid.uuid4().hex
    if world_size == 1:
        return {0: says}
    return _lead(folder, world_size, name, says) if rank == 0 else _follow(folder, rank, name, says)


def _lead(folder: Path, world_size: int, name: str, says: str) -> dict[int, str]:
    followers = range(1, world_size)
    answers: dict[int, _Word] = {}

    def absent() -> list[int]:
        words = {rank: _read(folder, rank) for rank in followers}
        answers.update({rank: word for rank, word in words.items() if word and name in word.to})
        return [rank for rank in followers if rank not in answers]

    def staying() -> list[int]:
        return [rank for rank in followers if _file(folder, rank).exists()]

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, 0, _Word(name, says))
    _wait_while(absent, folder)
    _write(folder, 0, _Word(name, says, tuple(word.name for word in answers.values())))
    _wait_while(staying, folder)
    shutil.rmtree(folder)
    return {0: says, **{rank: word.says for rank, word in answers.items()}}


def _follow(folder: Path, rank: int, name: str, says: str) -> dict[int, str]:
    answered = None
    while (leader := _read(folder, 0)) is None or name not in leader.to:
        if leader is not None and leader.name != answered:
            answered = leader.name
            _write(folder, rank, _Word(name, says, (answered,)))
        time.sleep(POLL_S)
    _file(folder, rank).unlink()
    return {0: leader.says, rank: says}


def _wait_while(left: Callable[[], list[int]], folder: Path) -> None:
    spoke = time.perf_counter()
    while ranks := left():
        if time.perf_counter() - spoke > SPEAK_EVERY_S:
            spoke = time.perf_counter()
            named = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
            print(f"waiting for ranks {named} to start and write into {folder}", flush=True)
        time.sleep(POLL_S)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.json"


def _write(folder: Path, rank: int, word: _Word) -> None:
    write_whole(_file(folder, rank), json.dumps(asdict(word)).encode())


def _read(folder: Path, rank: int) -> _Word | None:
    """None: not there, or just being replaced on a network's disk."""
    try:
        word = json.loads(_file(folder, rank).read_bytes())
    except OSError:
        return None
    return _Word(word["name"], word["says"], tuple(word["to"]))
