"""The digest of the samples seen: equal for two runs iff they saw the same samples at the same positions."""

import hashlib
from collections.abc import Iterable

import numpy as np

from pipeline.batch import Batch

LIMBS = 8
LIMB_MODULUS = 1 << 32


class SampleDigest:
    """A sum of sha256 over (task, position, key), limb by limb modulo 2^32.

    Positions make it sensitive to order, addition makes it blind to how a batch was split: any number
    of ranks, micro-steps or resumes gives the same. A limb's sum is exact in float64 for 2^20 ranks.
    """

    def __init__(self, text: str = "") -> None:
        """`text`: what `hex` gave, to go on from there."""
        self._total = np.frombuffer(bytes.fromhex(text or "00" * 4 * LIMBS), ">u4").astype(
            np.uint64
        )
        self._local = np.zeros(LIMBS, np.uint64)

    def add(self, batch: Batch) -> None:
        """This rank's part of a batch; counts once `absorb` got the sum of all ranks' parts."""
        for task, images in (("scene", batch.scenes), ("canvas", batch.canvases)):
            if images is not None:
                self.add_samples(task, zip(images.position.tolist(), images.keys))

    def add_samples(self, task: str, samples: Iterable[tuple[int, str]]) -> None:
        """The same from positions and keys; `task` is `scene` or `canvas`."""
        for position, key in samples:
            sample = hashlib.sha256(f"{task}:{position}:{key}".encode()).digest()
            self._local += np.frombuffer(sample, ">u4")
        self._local %= LIMB_MODULUS

    def take(self) -> list[int]:
        """What was added on this rank since the last call."""
        local, self._local = self._local, np.zeros(LIMBS, np.uint64)
        return [int(limb) for limb in local]

    def absorb(self, summed: list[int]) -> None:
        self._total = (self._total + np.array(summed, np.uint64)) % LIMB_MODULUS

    def hex(self) -> str:
        return self._total.astype(">u4").tobytes().hex()
