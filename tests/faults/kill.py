"""kill -9 at random moments of a forecast: nothing is torn, the same command ends it to the bit.

python -m tests.faults.kill --runs 200 --seed 1
"""

import argparse
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import check
from tests.faults.setting import Setting, made_setting

OTHER = ("--seed", "1")
"""Of an earlier result, which is to be overwritten."""


def kills(setting: Setting, runs: int, seed: int) -> Counter[str]:
    """Kills `runs` forecasts; every second one was to overwrite an earlier result.

    Moments are uniform between 0 and 1.1 times the duration of a run that is left alone.

    Returns:
        How often what was found after a kill.

    Raises:
        AssertionError: a result was torn or lost, or the run after it left or gave something else.
    """
    rng = np.random.default_rng(seed)
    unbroken, earlier = setting.place("unbroken"), setting.place("earlier")
    assert setting.server.run(setting.plain(earlier, *OTHER)).code == 0
    argv = setting.forecast(unbroken, "--overwrite")
    runs_alone = [setting.server.run(argv) for _ in range(3)]
    assert [ended.code for ended in runs_alone] == [0, 0, 0]
    # The shortest: other processes disturb, and later moments would miss the run.
    seconds = min(ended.seconds for ended in runs_alone)
    wanted = check.content(unbroken / "out")
    assert wanted != check.content(earlier / "out")
    found: Counter[str] = Counter()
    for run in range(runs):
        place, replaces = setting.place("killed"), run % 2 == 1
        if replaces:
            shutil.copytree(earlier / "out", place / "out")
        argv = setting.forecast(place, *(["--overwrite"] if replaces else []))
        pid = setting.server.start(argv)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        os.kill(pid, signal.SIGKILL)
        assert setting.server.wait().code in (-signal.SIGKILL, 0)
        found.update(after_kill(place, wanted, check.content(earlier / "out"), replaces))
        goes_on(setting, place, argv, wanted)
    return found


def after_kill(place: Path, wanted: Any, earlier: Any, replaces: bool) -> list[str]:
    """What lies in `place` after a kill.

    Raises:
        AssertionError: `out` is neither the earlier result nor the new one, or half of one.
    """
    said = ["killed with an earlier result" if replaces else "killed without an earlier result"]
    if check.whole(place / "out"):
        content = check.content(place / "out")
        assert content == wanted or (replaces and content == earlier)
        said.append("new result whole" if content == wanted else "earlier result whole")
    elif replaces:
        # Between the two renames: whole, under the name from which the next run takes it back.
        (aside,) = place.glob(".out.tadiff-old-*")
        assert check.whole(aside)
        assert check.content(aside) == earlier
        said.append("earlier result whole, aside")
    else:
        said.append("no result")
    kept = list(place.glob("work/slice-*.npz"))
    return [*said, *(["kept slices"] if kept else []), *_left(place)]


def _left(place: Path) -> list[str]:
    return ["temporaries"] if check.temporaries(place) else []


def goes_on(setting: Setting, place: Path, argv: list[str], wanted: Any) -> None:
    """The same command again: the result to the bit, and nothing else."""
    again = setting.server.run(argv)
    if again.code == 8:
        # The kill came too late, and nothing may be overwritten.
        assert "TD8001" in again.err, again
        assert "--overwrite" not in argv
        again = setting.server.run([*argv, "--overwrite"])
    assert again.code == 0, again
    assert check.whole(place / "out")
    assert check.content(place / "out") == wanted
    assert os.listdir(place) == ["out"]


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with made_setting() as setting:
        for what, count in sorted(kills(setting, asked.runs, asked.seed).items()):
            print(f"{count:6} {what}")  # noqa: T201


if __name__ == "__main__":
    main()
