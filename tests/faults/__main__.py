"""Every fault at every moment, and the counts in docs/endings.md: an hour on one core.

python -m tests.faults --seed 1
"""

import argparse
import errno
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tadiff_rt
from benchmarks.spread_table import with_blocks
from tests.faults import interrupts, kill, memory, steps
from tests.faults.server import ForkServer
from tests.faults.setting import Setting, made_setting

PAGE = Path(__file__).parents[2] / "docs" / "endings.md"
BLOCK = "endings"
FAILING = ("open", "write", "fsync", "close", "replace")
WAYS = {
    "two workers": ("--samples", "8", "--workers", "2"),
    "open number of samples": ("--samples", "auto", "--volume-ci", "30%", "--max-samples", "12"),
}


def rows(setting: Setting, seed: int, every: int) -> Iterator[tuple[str, Counter[str]]]:
    """Each fault with what was seen; raises where anything else was.

    Args:
        every: of the calls of the system, so many are tried.
    """
    calls = "every call" if every == 1 else f"call 1, {1 + every}, {1 + 2 * every}, ..."
    yield "kill -9 at a random moment", kill.kills(setting, 200, seed)
    for replaces, what in ((False, "new result"), (True, "replacing one")):
        yield f"end before {calls}, {what}", steps.deaths(setting, replaces, every)
        full = steps.failures(setting, errno.ENOSPC, steps.SPACE, replaces, every)
        yield f"disk full at {calls}, {what}", full
        broken = steps.failures(setting, errno.EIO, FAILING, replaces, every)
        yield f"disk failing at {calls}, {what}", broken
        for number in interrupts.ENDINGS:
            name = signal.Signals(number).name
            once = steps.signals(setting, number, replaces, every)
            yield f"{name} during {calls}, {what}", once
        thrice = steps.signals(setting, signal.SIGINT, replaces, every, times=3)
        yield f"SIGINT three times from {calls} on, {what}", thrice
    for way, more in WAYS.items():
        found = interrupts.interrupts(setting, 60, seed, more)
        yield f"signals at random moments, {way}", found


def bundled_rows() -> Iterator[tuple[str, Counter[str]]]:
    """Faults that take the bundled network."""
    data = Path(tadiff_rt.__file__).parent / "data"
    with ForkServer(pictures=True) as server:
        setting = Setting.of(server, data / "demo.tadiff", data / "demo_case" / "sub-demo")
        yield "address space limited, in steps of 50 MiB", memory.limits(setting)


def table(found: list[tuple[str, Counter[str]]]) -> str:
    """The counts as a table."""
    lines = ["| fault | seen |", "|---|---|"]
    for name, counts in found:
        seen = "; ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        lines.append(f"| {name} | {seen} |")
    return "\n".join(lines)


def main() -> None:
    """Runs everything and writes the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="Of the calls of the system.")
    asked = parser.parse_args()
    found = []
    with made_setting() as setting:
        for row in rows(setting, asked.seed, asked.every):
            print(*row, flush=True)  # noqa: T201
            found.append(row)
    found += bundled_rows()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_blocks(page, {BLOCK: table(found)}), encoding="utf-8")


if __name__ == "__main__":
    main()
