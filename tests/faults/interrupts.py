"""Signals at random moments of a forecast: clean endings with the code of the signal."""

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tests.faults.kill import goes_on
from tests.faults.setting import Setting
from tests.faults.steps import assert_clean, restored, with_earlier

ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def interrupts(setting: Setting, runs: int, seed: int, more: Sequence[str] = ()) -> Counter[str]:
    """Sends SIGINT, SIGTERM and SIGHUP in turn, once or three times, to `runs` forecasts.

    Args:
        more: options of the forecast, such as `--workers 2`.

    Returns:
        How often which ending was seen.

    Raises:
        AssertionError: another code, anything left, or a process that lives on.
    """
    rng = np.random.default_rng(seed)
    earlier, wanted, old = with_earlier(setting, "interrupts", *more)
    ended = setting.server.run(setting.forecast(setting.place("timed"), *more))
    assert ended.code == 0, ended
    found: Counter[str] = Counter()
    for run, number in zip(range(runs), itertools.cycle(ENDINGS), strict=False):
        replaces, times = run % 2 == 1, (1, 3)[run // 2 % 2]
        place = restored(setting, earlier if replaces else None)
        argv = setting.forecast(place, *more, *(["--overwrite"] if replaces else []))
        pid = setting.server.start(argv, ("usual_signals", {}))
        time.sleep(rng.uniform(0, ended.seconds))
        for _ in range(times):
            os.kill(pid, number)
            time.sleep(0.002)
        got = setting.server.wait()
        # The last: before the command had taken over what signals do.
        assert got.code in (0, ENDINGS[number], -number), got
        assert_clean(place, got, wanted, old if replaces else None)
        found[f"exit {got.code}" if got.code >= 0 else "not begun"] += 1
        goes_on(setting, place, argv, wanted)
    return found
