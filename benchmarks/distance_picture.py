"""The curve of docs/distance.svg and the table of docs/solvers.md from rows of solver_distance.

    python -m benchmarks.distance_picture

Distance of a run from a dense one against its steps, for the solvers there are rows of in
results/quality.jsonl, beside the distance of a dense run with other noise.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.harness import RESULTS
from benchmarks.solver_distance import DENSE, OTHER_NOISE, SHORT
from benchmarks.spread_table import table, with_blocks

DOCS = Path(__file__).parents[1] / "docs"
PICTURE, PAGE = DOCS / "distance.svg", DOCS / "solvers.md"
BLOCK = "distance"
SOLVERS = {"dpmpp_2m logsnr": "2M", "unipc_2 logsnr": "UniPC-2", "sde_dpmpp_2m logsnr": "SDE-2M"}
PANELS = {
    "mean": "mean image",
    "spread": "standard deviation",
    "probability": "tumour probability",
    "volume": "tumour volume (relative)",
}


def latest_rows() -> dict[str, dict[str, Any]]:
    """Contestant -> its last row against the dense run."""
    lines = (RESULTS / "quality.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {row["contestant"]: row for row in found if row["case"] == f"distance to {DENSE.name}"}


def distance_block(rows: dict[str, dict[str, Any]]) -> str:
    """The table: the floor, then every contestant."""
    head = ["sampler", "mean", "spread", "spread ratio", "probability", "1 - Dice", "volume"]
    lines = []
    for name in (OTHER_NOISE.name, *(contestant.name for contestant in SHORT)):
        row = rows[name]
        label = "*other noise*" if name == OTHER_NOISE.name else name
        figures = (row["mean"], row["spread"], row["spread_ratio"], row["probability"])
        lines.append([label, *(f"{x:.5f}" for x in (*figures, 1 - row["dice"], row["volume"]))])
    return table(head, lines)


def main() -> None:
    """Writes the table and draws the picture."""
    rows = latest_rows()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_blocks(page, {BLOCK: distance_block(rows)}), encoding="utf-8")
    draw(rows)


def draw(rows: dict[str, dict[str, Any]]) -> None:
    """Draws the picture."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tadiff"
    import matplotlib.pyplot as plt

    floor = rows[OTHER_NOISE.name]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3), layout="constrained")
    for axis, (field, title) in zip(axes, PANELS.items(), strict=True):
        for solver, label in SOLVERS.items():
            points = sorted(
                (int(name.split()[-1]), row[field])
                for name, row in rows.items()
                if name.rsplit(" ", 1)[0] == solver
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.axhline(floor[field], color="0.4", linestyle="--", label="other noise")
        axis.set(title=title, xscale="log", yscale="log", xlabel="network evaluations")
        axis.set_xticks([5, 8, 10, 15, 20, 50], ["5", "8", "10", "15", "20", "50"], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel(f"distance from {DENSE.steps} steps")
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
