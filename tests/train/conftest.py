"""What tests of training share."""

import pytest
import torch

from tadiff_train.data import CachedCase
from tests.train.toy_runs import discs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The result of training is a function of the seed for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases() -> list[CachedCase]:
    """Two toy patients, the second with a short history."""
    return [discs(0), discs(1, 3)]
