"""A limit of address space, from too little to enough."""

import re
from collections import Counter

from tests.faults import check
from tests.faults.server import Ended
from tests.faults.setting import Setting

STEP_BYTES = 50 << 20
ENOUGH = 3
"""Forecasts in a row that end well, after which no more memory is tried."""

_NATIVE = re.compile(r"OpenBLAS error: Memory allocation|std::bad_alloc")
"""What libraries say that end the process themselves."""


def limits(setting: Setting, step_bytes: int = STEP_BYTES) -> Counter[str]:
    """Forecasts with more and more address space beyond what the imports take.

    Returns:
        How often which ending was seen.

    Raises:
        AssertionError: an ending that is no success and does not say that memory ran out, or
            anything left behind.
    """
    found: Counter[str] = Counter()
    beyond = well = 0
    while well < ENOUGH:
        place = setting.place("memory")
        fault = ("limit", {"name": "RLIMIT_AS", "soft": beyond, "above_present": True})
        ended = setting.server.run(setting.forecast(place), fault)
        what = ending(ended)
        if what != "ended by a library":
            assert not (left := check.temporaries(place)), (left, ended)
        assert check.whole(place / "out") == (ended.code == 0), ended
        found[what] += 1
        well = well + 1 if ended.code == 0 else 0
        beyond += step_bytes
    return found


def ending(ended: Ended) -> str:
    """Its kind.

    Raises:
        AssertionError: it is none of those that are promised.
    """
    assert "Traceback" not in ended.err, ended
    if ended.code == 0:
        return "exit 0"
    if ended.code == 7:
        assert re.search(r"error TD70\d\d", ended.err), ended
        return "exit 7"
    assert ended.code in (1, -6), ended
    assert _NATIVE.search(ended.err), ended
    return "ended by a library"
