"""What needs a GPU: `make test-cuda`. Without one every test fails, and says so."""

import pytest
import torch


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("these tests need a CUDA GPU, and PyTorch sees none", pytrace=False)
    return torch.device("cuda", 0)
