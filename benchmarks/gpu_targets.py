"""Rungs, columns and targets, set before anything was measured, and what rows say of them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floor import Row
from benchmarks.spread_table import table

OPERATORS = ("group_norm_silu/", "attention/", "conditioning/", "solver_step/", "ensemble_step/")
FRACTIONS = ("roofline_fraction", "fraction_separate_norms")
"""Columns of a row: of the floor without norms, and with norms as passes of their own."""
LADDER = (
    ("eager", "fp32"),
    ("eager, TF32", "fp32"),
    ("channels_last", "fp32"),
    ("channels_last", "fp16"),
    ("channels_last", "bf16"),
    ("channels_last, compiled", "fp16"),
    ("fused", "fp16"),
    ("fused, compiled", "fp16"),
    ("fused, compiled, graph", "fp16"),
    ("the same, cuDNN searching", "fp16"),
    ("fused", "bf16"),
    ("fused, compiled", "bf16"),
    ("fused, compiled, graph", "bf16"),
)
"""Rungs and their types; the first, the published network as PyTorch runs it without TF32, is what
others are compared with."""
OTHER = "other noise"
"""The first rung's ensemble of other noise: how far apart two ensembles of so few samples are."""
BEST = "fused, compiled, graph"

Found = dict[str, dict[str, Row]]
"""Case -> contestant -> its row."""


def read(path: Path) -> list[Row]:
    """All rows that a GPU gave, in the order in which they were written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["device"] == "cuda"]


def found(rows: Iterable[Row], prefix: str) -> Found:
    """Rows of the last session that has any whose case starts with `prefix`."""
    ends = r"(?!\d)" if prefix[-1].isdigit() else ""  # batch 1 is not batch 16
    begins = re.compile(re.escape(prefix) + ends)
    wanted = [row for row in rows if begins.match(row["case"])]
    cases: Found = {}
    for row in wanted:
        if row["session"] == wanted[-1]["session"]:
            cases.setdefault(row["case"], {})[row["contestant"]] = row
    return cases


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share."""
    return f"{value:.0%}"


@dataclass(frozen=True)
class Target:
    """A figure that was set before anything was measured."""

    what: str
    most: float
    """Or least, for a share or a ratio."""
    measured: Callable[[list[Row]], Iterable[float]]
    """Candidates of which the best counts; of `worst`, the worst."""
    show: Callable[[float], str]
    least: bool = False
    worst: bool = False

    def line(self, rows: list[Row]) -> list[str]:
        """Target, figure, verdict."""
        values = [*self.measured(rows)]
        sign = "at least" if self.least else "at most"
        wanted = f"{sign} {self.show(self.most)}"
        if not values:
            return [self.what, wanted, "not measured", "-"]
        value = (max if self.least != self.worst else min)(values)
        met = value >= self.most if self.least else value <= self.most
        return [self.what, wanted, self.show(value), "yes" if met else "**no**"]


def of(
    prefix: str, key: str, scale: float = 1.0, contestant: str = ""
) -> Callable[[list[Row]], Iterable[float]]:
    """Figures `key` of rows whose case and contestant begin so."""

    def values(rows: list[Row]) -> Iterable[float]:
        for by_name in found(rows, prefix).values():
            for name, row in by_name.items():
                if name.startswith(contestant) and row.get(key) is not None:
                    yield scale * row[key]

    return values


def seconds(value: float) -> str:
    """Of an ensemble."""
    return f"{figure(value)} s"


def milliseconds(value: float) -> str:
    """Of an evaluation."""
    return f"{figure(value)} ms"


def microseconds(value: float) -> str:
    """Of the conditioning."""
    return f"{figure(value)} us"


FORTY, GRAPHS = "network/192/batch 40", f"{BEST} "
TARGETS = (
    Target("conditioning of 50 steps", 50, of("conditioning/50", "ms", 1e3, "ours"), microseconds),
    Target(
        "one evaluation, batch 1",
        0.8,
        of("network/192/batch 1", "ms_per_image", 1, GRAPHS),
        milliseconds,
    ),
    Target("an image, batch 40", 0.2, of(FORTY, "ms_per_image", 1, GRAPHS), milliseconds),
    Target("of the floor, batch 40", 0.6, of(FORTY, FRACTIONS[0], 1, GRAPHS), percent, least=True),
    Target(
        "the same, norms as passes of their own",
        0.6,
        of(FORTY, FRACTIONS[1], 1, GRAPHS),
        percent,
        least=True,
    ),
    Target("155 slices, 5 samples, 20 steps", 4, of("ensemble/192/155", "ms", 1e-3), seconds),
    Target(
        "operators against torch.compile, the least of all shapes",
        1.5,
        lambda rows: (v for name in OPERATORS for v in of(name, "of_compiled")(rows)),
        lambda v: f"{v:.2f}x",
        least=True,
        worst=True,
    ),
)


def targets(rows: list[Row]) -> str:
    """All targets, measured or not."""
    return table(["", "target", "measured", "met"], [target.line(rows) for target in TARGETS])
