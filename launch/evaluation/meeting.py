"""Ranks of one launch that find each other in a folder, whatever killed launches left in it.

Each draws a name. A follower answers the leader that it reads of, alive or not; the leader greets those who
have answered its own name; and a follower that is greeted by its own name knows that the leader is alive. An
orphan, a follower that outlived its own launch, may answer too: it is greeted, and whoever has its rank in
this launch is so as well, however late.
"""

import json
import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.evaluation.detections import write_whole

SPEAK_EVERY_S = 15.0
POLL_S = 0.1
GRACE_S = 5.0
"""For those who were greeted to notice: one that was killed since then never will."""
LEADER = "0.json"
FOLLOWER = re.compile(r"(\d+)-[0-9a-f]+\.json")


@dataclass(frozen=True)
class _Word:
    name: str
    says: str
    to: tuple[str, ...] = ()


@dataclass
class Meeting:
    """At which all ranks of this launch are."""

    said: dict[int, str]
    """By rank. A follower knows what rank 0 and itself said."""
    _folder: Path
    _world_size: int
    _word: _Word | None
    """The leader's; None: this rank greets nobody."""

    def greet(self) -> None:
        """Lets in who has answered by now. Rank 0 calls it while it works."""
        if self._word is None:
            return
        answers = _answers(self._folder, self._world_size, self._word.name)
        names = {word.name for words in answers.values() for word in words}
        if late := sorted(names - set(self._word.to)):
            self._word = replace(self._word, to=(*self._word.to, *late))
            _write(self._folder / LEADER, self._word)

    def close(self) -> None:
        """When the work is done: `folder` is gone afterwards. Rank 0 alone."""
        if self._word is None:
            return
        self.greet()
        until = time.perf_counter() + GRACE_S
        while time.perf_counter() < until and _answers(
            self._folder, self._world_size, self._word.name
        ):
            time.sleep(POLL_S)
        shutil.rmtree(self._folder, ignore_errors=True)  # an orphan may still write into it


def meet(folder: Path, rank: int, world_size: int, says: str) -> Meeting:
    """What ranks of this launch say: all to rank 0, rank 0 to each. Returns once all are there.

    What rank 0 did before is done for all.
    """
    name = uuid.uuid4().hex
    if world_size == 1:
        return Meeting({0: says}, folder, world_size, None)
    if rank == 0:
        return _lead(folder, world_size, _Word(name, says))
    leader = _follow(folder, rank, name, says)
    return Meeting({0: leader.says, rank: says}, folder, world_size, None)


def _lead(folder: Path, world_size: int, word: _Word) -> Meeting:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / LEADER, word)
    answers: dict[int, list[_Word]] = {}

    def absent() -> str:
        answers.update(_answers(folder, world_size, word.name))
        ranks = sorted(set(range(1, world_size)) - answers.keys())
        named = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
        return named and f"waiting for ranks {named} to start and write into {folder}"

    wait_while(absent)
    said = {0: word.says}
    for rank, words in answers.items():
        all_say = {one.says for one in words}
        said[rank] = word.says if word.says in all_say else min(all_say)
    meeting = Meeting(said, folder, world_size, word)
    meeting.greet()
    return meeting


def _follow(folder: Path, rank: int, name: str, says: str) -> _Word:
    """The word of the leader that greeted this rank."""
    own = folder / f"{rank}-{name}.json"
    leader: _Word | None = None
    answered = None

    def not_greeted() -> str:
        nonlocal leader, answered
        leader = _read(folder / LEADER)
        if leader is not None and name in leader.to:
            return ""
        if leader is not None and leader.name != answered:
            answered = leader.name
            _write(own, _Word(name, says, (answered,)))
        return f"rank {rank} waits for rank 0 to start and to let it in, in {folder}"

    wait_while(not_greeted)
    assert leader is not None
    own.unlink(missing_ok=True)
    return leader


def wait_while(reason: Callable[[], str], poll_s: float = POLL_S) -> None:
    """Until there is none; says it now and then."""
    spoke = time.perf_counter()
    while text := reason():
        if time.perf_counter() - spoke > SPEAK_EVERY_S:
            spoke = time.perf_counter()
            print(text, flush=True)
        time.sleep(poll_s)


def _answers(folder: Path, world_size: int, leader: str) -> dict[int, list[_Word]]:
    """By rank, all who answer this leader."""
    found: dict[int, list[_Word]] = defaultdict(list)
    for rank, path in _followers(folder):
        word = _read(path) if rank < world_size else None
        if word is not None and leader in word.to:
            found[rank].append(word)
    return found


def _followers(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in sorted(folder.iterdir()):
        if match := FOLLOWER.fullmatch(path.name):
            yield int(match[1]), path


def _write(path: Path, word: _Word) -> None:
    write_whole(path, json.dumps(asdict(word)).encode())


def _read(path: Path) -> _Word | None:
    """None: not there, or just being replaced on a network's disk."""
    try:
        word = json.loads(path.read_bytes())
    except OSError:
        return None
    return _Word(word["name"], word["says"], tuple(word["to"]))
