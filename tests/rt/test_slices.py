"""Choices of slices, each against its definition."""

import numpy as np
import pytest

from tadiff_rt.errors import TadiffError, UsageError
from tadiff_rt.slices import parse_slices


def codes(call, *args):
    with pytest.raises(TadiffError) as caught:
        call(*args)
    return [error.code for error in caught.value.findings]


BRAIN = np.array([0, 1, 1, 1, 0, 1], bool)
TUMOUR = np.array([0, 0, 1, 1, 0, 0], bool)


@pytest.mark.parametrize(
    ("text", "slices"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("brain", [1, 2, 3, 5]),
        ("tumour", [2, 3]),
        ("0", [0]),
        ("5", [5]),
        (4, [4]),
        ("1:3", [1, 2]),
        ("0:6", [0, 1, 2, 3, 4, 5]),
        ("1,2", [1, 2]),
        ("4,0:2,1", [0, 1, 4]),
    ],
)
def test_slices_mean_what_they_say(text, slices):
    assert parse_slices(text).resolve(6, BRAIN, TUMOUR).tolist() == slices


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3:3",
        "4:2",
        ":3",
        "3:",
        "1:2:3",
        "-1",
        "tumor",
        "All",
        "1,",
        ",1",
        "1,,2",
        "1, 2",
        "1,3:3",
        "1,all",
        "\uff11",
        "1e1",
    ],
)
def test_malformed_slices_are_refused(text):
    assert codes(parse_slices, text) == ["TD3018"]


@pytest.mark.parametrize("text", ["6", "5:7", "999999", "6,0"])
def test_slices_outside_the_volume_are_refused(text):
    with pytest.raises(UsageError, match="outside the volume, 0 to 5") as caught:
        parse_slices(text).resolve(6, BRAIN, None)
    assert caught.value.code == "TD3019"


@pytest.mark.parametrize("tumour", [None, np.zeros(6, bool)], ids=["no-mask", "empty-mask"])
def test_tumour_slices_need_a_tumour(tumour):
    with pytest.raises(UsageError) as caught:
        parse_slices("tumour").resolve(6, BRAIN, tumour)
    assert (caught.value.code, caught.value.fix) == ("TD3020", "pass --slices brain")


def test_brain_slices_need_a_brain():
    empty = np.zeros(6, bool)
    assert codes(parse_slices("brain").resolve, 6, empty, None) == ["TD3020"]
