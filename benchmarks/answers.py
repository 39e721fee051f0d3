"""Tables of docs/performance.md and README.md: what the rows of every question say.

A function a table, from rows to Markdown. Where a question has no rows the table is the words
NOT_MEASURED. Nothing here is measured, and nothing on those pages is typed.
"""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.one_slice import BF16, CASE, FAST, KEPT, OURS, PUBLISHED, REFERENCE
from benchmarks.spread_table import table

NOT_MEASURED = "Not measured."
Row = dict[str, Any]
Rows = dict[str, list[Row]]
"""Question -> its rows."""


def by_name(rows: Iterable[Row], case: str) -> dict[str, Row]:
    """Contestant -> row, of the rows whose case is or begins with `case`."""
    return {row["contestant"]: row for row in rows if row["case"].startswith(case)}


def seconds(ms: float) -> str:
    """ "38 min", "24.2 s", "0.312 s" or "3.1 ms": three digits of the unit that suits."""
    if ms >= 6e5:
        return f"{ms / 6e4:.0f} min"
    if ms >= 100:
        return f"{ms / 1e3:.3g} s" if ms < 1e6 else f"{ms / 1e3:.0f} s"
    return f"{ms:.3g} ms"


def times(factor: float) -> str:
    """ "2.41x", "63x"."""
    return f"{factor:.3g}x" if factor < 100 else f"{factor:.0f}x"


def spread(quality: Any) -> str:
    """What of the true spread samples keep, of Gaussian data of three standard deviations."""
    if not isinstance(quality, dict) or "spread" not in quality:
        return "-"
    low, high = quality["spread"]
    mark = "" if quality["keeps_spread"] else " **(fails)**"
    return f"{100 * low:.0f} to {100 * high:.0f} %{mark}"


def certificate(quality: Any) -> str:
    """Whether the certificate of a plan passes; how many of its checks fail."""
    if "certificate" not in quality:
        return "-"
    said = str(quality["certificate"])
    return said if said == "passes" else f"{said.count(';') + 1} of its checks fail"


def reached(row: Row) -> str:
    """Share of the floor."""
    return f"{row['roofline_fraction']:.0%}" if "roofline_fraction" in row else "-"


def machine(rows: list[Row]) -> str:
    """Where and with what the rows were measured, as the line under a table."""
    of, versions = rows[0]["hardware"], rows[0]["versions"]
    packages = [f"{name} {v}" for name, v in versions.items() if name not in ("commit", "python")]
    where = f"{of['cpu']}, {of['cores']} cores" + (f", {of['gpu']['name']}" if of["gpu"] else "")
    return (
        f"{where}; {rows[0]['measured']}, commit {versions['commit']}; "
        f"Python {versions['python']}, {', '.join(packages)}."
    )


def rates(rows: list[Row]) -> str:
    """The floors' own rates, from every question that has floors."""
    lines = [
        [
            row["case"],
            f"{row['flops_per_s']['fp32'] / 1e9:.0f} GFLOP/s",
            f"{row['bytes_per_s'] / 1e9:.1f} GB/s",
        ]
        for row in rows
    ]
    return table(["measured beside", "matrix product, fp32", "copy, read and written"], lines)


def one_slice(rows: list[Row]) -> str:
    """Every way to five samples of one slice."""
    every = by_name(rows, CASE)
    base = every[PUBLISHED]["ms"]
    head = [
        "", "time", "steps run", "faster than the published", "of its floor", "spread kept",
        "memory", "page faults an evaluation",
    ]  # fmt: skip
    lines = []
    for name, row in every.items():
        if "ms" not in row:
            continue
        steps = row["extrapolated_from_steps"]
        run = f"{steps} of {row['evaluations']}" if steps else "all"
        lines.append(
            [
                f"**{name}**" if name in (OURS, BF16, FAST) else name,
                seconds(row["ms"]),
                run,
                times(base / row["ms"]),
                reached(row),
                spread(row["quality"]),
                certificate(row["quality"]),
                f"{row['peak_mb'] / 1e3:.2f} GB",
                f"{row['page_faults_an_evaluation'] / 1e3:.0f} k",
            ]
        )
    return table(head, lines)


def factors(rows: list[Row]) -> dict[str, float]:
    """What is claimed, each beside the smaller one: against memory that is kept."""
    every = by_name(rows, CASE)
    ours, fast = every[OURS]["ms"], every[FAST]["ms"]
    found = {
        "the runtime: the same plan in eager PyTorch": every[REFERENCE]["ms"] / ours,
        "the same, memory kept": every[REFERENCE + KEPT]["ms"] / ours,
        "the whole: the published procedure": every[PUBLISHED]["ms"] / ours,
        "the whole, memory kept": every[PUBLISHED + KEPT]["ms"] / ours,
        "the fast preset: the published procedure": every[PUBLISHED]["ms"] / fast,
        "the fast preset, memory kept": every[PUBLISHED + KEPT]["ms"] / fast,
    }
    if BF16 in every:
        half = every[BF16]["ms"]
        found["in bf16: this runtime in fp32"] = ours / half
        found["in bf16: the same plan in eager PyTorch, memory kept"] = (
            every[REFERENCE + KEPT]["ms"] / half
        )
        found["in bf16: the published procedure, memory kept"] = (
            every[PUBLISHED + KEPT]["ms"] / half
        )
    return found


def speed_picture(rows: list[Row]) -> str:
    """Bars: how many times faster than the published procedure."""
    every = {name: row for name, row in by_name(rows, CASE).items() if "ms" in row}
    base = every[PUBLISHED]["ms"]
    shown = {name: base / row["ms"] for name, row in every.items() if not name.endswith(KEPT)}
    return bars("times faster than the published procedure", shown)


def network(rows: list[Row]) -> str:
    """One evaluation, an image, by engine and batch."""
    cases = [case for case in dict.fromkeys(row["case"] for row in rows) if "batch" in case]
    names = dict.fromkeys(row["contestant"] for row in rows if row["case"] in cases)
    lines = []
    for name in names:
        found = [by_name(rows, case).get(name) for case in cases]
        cells = [f"{seconds(row['ms'])}, {reached(row)}" if row else "-" for row in found]
        measured = [row for row in found if row]
        worst = max(row["quality"]["estimate_differs"] for row in measured)
        ready = seconds(1e3 * max(row["setup_seconds"] for row in measured))
        memory = max(row["peak_mb"] for row in measured)
        lines.append([name, *cells, ready, f"{memory / 1e3:.2f} GB", f"{worst:.0e}"])
    head = ["an image, and of the floor", *cases, "until ready", "memory", "differs by"]
    return table(head, lines)


def bars(title: str, values: dict[str, float]) -> str:
    """A bar chart in the language that code hosts draw; on the site docs/site_hooks.py does."""
    names = ", ".join('"' + name.replace('"', "") + '"' for name in values)
    numbers = ", ".join(f"{value:.3g}" for value in values.values())
    top = f"{1.1 * max(values.values()):.3g}"
    lines = [
        "xychart-beta horizontal",
        f'    title "{title}"',
        f"    x-axis [{names}]",
        f'    y-axis "{title}" 0 --> {top}',
        f"    bar [{numbers}]",
    ]
    return mermaid(lines)


def shares(title: str, values: dict[str, float]) -> str:
    """A pie of parts of a whole."""
    parts = [f'    "{name}" : {value:.4g}' for name, value in values.items()]
    return mermaid([f"pie showData title {title}", *parts])


def mermaid(lines: list[str]) -> str:
    """A fenced block."""
    return "\n".join(["```mermaid", *lines, "```"])


Table = Callable[[list[Row]], str]
