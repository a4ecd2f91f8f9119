"""The memory that views are written into: used again once nobody holds a tensor of it."""

import weakref
from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.device import uses_gpu


class Buffers:
    """Tensors for batches. Fresh memory for each would cost a page fault for every 4 KiB.

    Memory comes back when its tensor, every view and every array of it are gone, so whoever keeps a batch
    may do so. Held at most: what was in use at once.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[NDArray[np.uint8]]] = defaultdict(list)

    def take(self, *shape: int) -> Tensor:
        """uint8 with arbitrary content; pinned where a GPU is used."""
        if uses_gpu():
            # torch recycles pinned memory itself, and not before copies from it have ended.
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        free = self._free[shape]
        memory = free.pop() if free else np.empty(shape, np.uint8)
        lease = memory.view()
        weakref.finalize(lease, free.append, memory).atexit = False
        return torch.from_numpy(lease)
