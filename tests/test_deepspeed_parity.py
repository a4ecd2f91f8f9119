"""Two DeepSpeed ranks equal one, in fp32 with proposals fixed: free ones flip on differences of 1e-7.

ZeRO 1, accumulation and four ranks: `make test-distributed`.
"""

from pathlib import Path

import pytest

from tests.parity import FP32, Case, deviation, trained
from tests.parity_batches import KINDS

pytestmark = pytest.mark.launched


def test_two_deepspeed_ranks_equal_one(tmp_path: Path) -> None:
    case = Case()
    one, two = (trained(size, tmp_path, [case], steps=len(KINDS)) for size in (1, 2))
    largest = deviation(one / case.name, two / case.name)
    assert largest.value < FP32, largest
