"""The tables of docs/gpu.md from the last rows that a GPU gave.

`python -m benchmarks.gpu_table` writes them into the page, a test holds page and rows together;
`python -m benchmarks.gpu_table ROWS` prints those of another file of rows. A table shows the last
session that has rows for it: figures of different sessions do not stand side by side.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.device import ROWS
from benchmarks.floor import Row
from benchmarks.gpu_targets import (
    FRACTIONS,
    LADDER,
    OPERATORS,
    OTHER,
    Found,
    figure,
    found,
    percent,
    read,
    targets,
)
from benchmarks.harness import RESULTS
from benchmarks.spread_table import table, with_blocks

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
NOT_MEASURED = "Not measured: no GPU was available."


def origin(cases: Found) -> str:
    """Where the rows of a table are from."""
    row = next(iter(next(iter(cases.values())).values()))
    gpu, versions = row["hardware"]["gpu"] or {}, row["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton"))
    driver = ", driver {driver}, {sm_mhz} of {max_sm_mhz} MHz".format(**gpu) if gpu else ""
    commit = versions["commit"] or "unknown"
    return f"{row['gpu']}{driver}; {packages}; commit {commit}; {row['session']}."


def cell(row: Row | None, key: str, shown: Callable[[float], str] = figure) -> str:
    """A figure of a row; where there is none, that."""
    if row is None:
        return "-"
    if "failed" in row:
        return "failed"
    return "-" if row.get(key) is None else shown(row[key])


def rates(cases: Found) -> str:
    """What the machine reached."""
    rows = cases["roofline"]
    units = {"bytes_per_s": (1e12, "TB/s"), "flops_per_s": (1e12, "TFLOP/s")}
    lines = []
    for name, row in rows.items():
        key = next((key for key in units if key in row), None)
        value = f"{1e3 * row['ms']:.3g} us" if key is None else ""
        if key is not None:
            scale, unit = units[key]
            value = f"{figure(row[key] / scale)} {unit}"
        lines.append([name, value])
    return table(["", "reached"], lines)


ERRORS = ("error", "allowed_error")


def kernels(cases: Found) -> str:
    """Every operator on every shape."""
    head = ["", "eager", "compiled", "ours", "of compiled", "floor", "of floor", "error", "stays"]
    lines = []
    for case, rows in cases.items():
        ours = rows.get("ours")
        times = [cell(rows.get(name), "ms") for name in ("eager", "compiled", "ours")]
        error = " of ".join(cell(ours, key, "{:.1e}".format) for key in ERRORS)
        stays = cell(ours, "keep", lambda keep: "yes" if keep else "**no**")
        faster = cell(ours, "of_compiled", lambda x: f"{x:.2f}x")
        floor = [cell(ours, "floor_ms"), cell(ours, "roofline_fraction", percent)]
        lines.append([case, *times, faster, *floor, error, stays])
    return table(head, lines)


def ladder(cases: Found) -> str:
    """Milliseconds an image and shares of the floor, by batch."""
    batches = sorted(cases, key=lambda case: int(case.rpartition(" ")[2]))
    head = ["", *(case.rpartition("/")[2] for case in batches), "memory"]
    lines = []
    for name, dtype in LADDER:
        rows = [cases[case].get(f"{name} {dtype}") for case in batches]
        cells = []
        for row in rows:
            shares = [cell(row, key, percent) for key in FRACTIONS]
            shown = f"{cell(row, 'ms_per_image')} ms, {' / '.join(shares)}"
            cells.append(shown if row and "ms" in row else cell(row, "ms"))
        memory = cell(rows[-1], "peak_mb", lambda mb: f"{mb / 1e3:.2f} GB")
        lines.append([f"{name} {dtype}", *cells, memory])
    return table(head, lines)


QUALITY = {
    "eps_max_error": "eps, largest",
    "eps_rms_error": "eps, rms",
    "ensemble_mean": "mean, rms",
    "ensemble_spread": "spread, rms",
    "ensemble_spread_ratio": "spread ratio",
    "ensemble_dice": "Dice",
    "ensemble_volume": "volume",
}


def quality(cases: Found) -> str:
    """Distances from the first rung, at the smallest batch that was measured."""
    case = min(cases, key=lambda case: int(case.rpartition(" ")[2]))
    names = [OTHER, *(" ".join(rung) for rung in LADDER)]
    lines = [[name, *(cell(cases[case].get(name), key) for key in QUALITY)] for name in names]
    return table([case.rpartition("/")[2], *QUALITY.values()], lines)


def ensemble(cases: Found) -> str:
    """A whole head."""
    head = ["", "sampling", "whole forecast", "slices/s", "of floor", "memory"]
    lines = []
    for rows in cases.values():
        for name, row in rows.items():
            seconds = cell(row, "ms", lambda ms: f"{figure(ms / 1e3)} s")
            whole = cell(row, "forecast_s", lambda s: f"{figure(s)} s")
            shares = " / ".join(cell(row, key, percent) for key in FRACTIONS)
            memory = cell(row, "peak_mb", lambda mb: f"{mb / 1e3:.2f} GB")
            lines.append([name, seconds, whole, cell(row, "slices_per_s"), shares, memory])
    return table(head, lines)


def monai(cases: Found) -> str:
    """The helper beside ours, in the same turns."""
    lines = []
    for case, rows in cases.items():
        for name, row in rows.items():
            shown = row.get("not_measured") or f"{cell(row, 'ms')} ms"
            lines.append([case, name, shown, cell(row, FRACTIONS[0], percent)])
    return table(["", "", "one evaluation", "of floor"], lines)


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Found], str]]] = {
    "what the machine reached": (("roofline",), rates),
    "operators": (OPERATORS, kernels),
    "ladder": (("network/",), ladder),
    "quality of the ladder": (("network/",), quality),
    "ensemble": (("ensemble/",), ensemble),
    "MONAI": (("monai/",), monai),
}
"""Block -> beginnings of its cases, and what makes it of them."""


def blocks(rows: list[Row]) -> dict[str, str]:
    """Every block of the page."""
    made = {"targets": targets(rows) if rows else f"{targets(rows)}\n\n{NOT_MEASURED}"}
    for name, (prefixes, tabulate) in TABLES.items():
        cases = {case: by for prefix in prefixes for case, by in found(rows, prefix).items()}
        made[name] = f"{tabulate(cases)}\n\n{origin(cases)}" if cases else NOT_MEASURED
    return made


def main(*files: str) -> None:
    """Writes the page, or prints the tables of other rows."""
    if files:
        for name, text in blocks(read(Path(files[0]))).items():
            print(f"\n{name}\n\n{text}")  # noqa: T201
        return
    page = PAGE.read_text(encoding="utf-8")
    committed = read(RESULTS / f"{ROWS}.jsonl")
    PAGE.write_text(with_blocks(page, blocks(committed)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
