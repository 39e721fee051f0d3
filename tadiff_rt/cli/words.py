"""Options that take several words, what the shell completes, and the lines that commands print."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from tadiff_rt.errors import UsageError, printable

SEVERAL = ("--day", "--treatment")
"""Options with one or more values: `--day +30 +90`."""

USE = "predicted, not acquired, research use"


class SeveralWords(TyperCommand):
    """A command whose options SEVERAL take every word up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `click.Command.parse_args`.

        Raises:
            UsageError: TD3000, one of SEVERAL has no value: the parser would take the next option
                for it.
        """
        if not ctx.resilient_parsing:  # as it is while the shell completes
            for word, after in pairwise(args):
                if word in SEVERAL and (after.startswith("--") or after in ("-o", "-q")):
                    what = f"Option {word!r} requires an argument."
                    raise UsageError("TD3000", what, fix="see `tadiff-rt predict --help`")
        return super().parse_args(ctx, spread(args))


def spread(arguments: Sequence[str]) -> list[str]:
    """`--day +30 +90` as `--day +30 --day +90`, which the parser understands."""
    result: list[str] = []
    option, values = "", 0
    for word in arguments:
        name, _, value = word.partition("=")
        if word.startswith("-"):
            option, values = (name, 1 if value else 0) if name in SEVERAL else ("", 0)
        elif option:
            if values:
                result.append(option)
            values += 1
        result.append(word)
    return result


def one_of(*words: str) -> Callable[[str], list[str]]:
    """What the shell offers for an option."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def summary(report: dict[str, Any]) -> list[str]:
    """A line a scenario, request and tumour volume; then a line a difference."""
    lines = []
    for entry in report["scenarios"].values():
        request, volume = entry["request"], entry["volume_ml"]
        lines.append(
            f"day {request['day']}, {request['treatment']}: tumour {volume['mean']:.1f} ml"
            f"{_interval(volume, '.1f')} in {volume['covers']}; {USE}"
        )
    for entry in report["differences"]:
        volume = entry["volume_ml"]
        lines.append(
            f"{entry['scenario']} minus {entry['reference']}, with the same noise: "
            f"{volume['mean']:+z.1f} ml{_interval(volume, '+z.1f')}"
        )
    return lines


def _interval(volume: dict[str, Any], form: str) -> str:
    low, high = volume["interval"]
    if low is None:
        return ""
    return f" ({volume['level']:.0%} interval {low:{form}} to {high:{form}})"


def written(out: Path, start: str) -> str:
    """Where the result is."""
    return printable(f"written to {out}; start with {out / start}")
