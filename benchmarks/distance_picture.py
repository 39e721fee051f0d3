"""The curve of docs/distance.svg from rows in results/quality.jsonl.

    python -m benchmarks.distance_picture

Distance of a run from a dense one against its steps, for the solvers there are rows of, beside the
distance of a dense run with other noise.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.harness import RESULTS
from benchmarks.solver_distance import DENSE, OTHER_NOISE

OUT = Path(__file__).parents[1] / "docs" / "distance.svg"
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


def main() -> None:
    """Draws the picture."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tadiff"
    import matplotlib.pyplot as plt

    rows = latest_rows()
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
    figure.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
