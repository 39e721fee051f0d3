"""The table of docs/export.md from the latest rows of `benchmarks.engines_cpu`.

`python -m benchmarks.engines_table` writes it; a test holds page and rows together.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.spread_table import table, with_blocks

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
BLOCK = "engines on a CPU"
CASES = tuple((size, batch) for size in (96, 192) for batch in (1, 5))
CONTESTANTS = (
    "eager",
    "eager, chunked attention",
    "compiled",
    "openvino",
    "onnxruntime, norms by definition",
    "onnxruntime, attention in one piece",
    "onnxruntime",
)


def latest_rows() -> dict[tuple[int, int], dict[str, dict[str, Any]]]:
    """(size, batch) -> contestant -> its last row."""
    found: dict[tuple[int, int], dict[str, dict[str, Any]]] = {case: {} for case in CASES}
    for line in (RESULTS / "cpu.jsonl").read_text().splitlines():
        row = json.loads(line)
        for size, batch in CASES:
            if row["case"] == f"engines/A/{size}/batch {batch}":
                found[size, batch][row["contestant"]] = row
    return found


def engines_block(rows: dict[tuple[int, int], dict[str, dict[str, Any]]]) -> str:
    """Milliseconds an image, the share of the matrix-product rate, and the difference."""
    head = ["", *(f"{size} x {size}, batch {batch}" for size, batch in CASES), "difference"]
    lines = []
    for name in CONTESTANTS:
        cells = [rows[case][name] for case in CASES]
        figures = [f"{cell['ms']:.0f} ms, {cell['of_floor']:.0%}" for cell in cells]
        worst = max(cell["difference_from_eager"] for cell in cells)
        lines.append([name, *figures, f"{worst:.0e}"])
    cell = rows[CASES[0]]["onnxruntime"]
    measured = cell["hardware"]["cpu"], cell["threads"], cell["versions"]
    cpu, threads, versions = measured
    packages = ", ".join(f"{k} {v}" for k, v in versions.items() if k not in ("commit", "python"))
    return table(head, lines) + f"\n\n{cpu}, {threads} threads; {packages}."


def main() -> None:
    """Writes the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_blocks(page, {BLOCK: engines_block(latest_rows())}), encoding="utf-8")


if __name__ == "__main__":
    main()
