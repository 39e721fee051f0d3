"""Tables of docs/performance.md about whole runs: start, breakdown, memory, growth, samplers."""

from typing import Any

from benchmarks.answers import Row, bars, by_name, mermaid, reached, seconds, shares, spread
from benchmarks.spread_table import table

TOTAL, LINE = "total", "line"
OVERVIEW_CASES = {"A 192": "end-to-end/A 192", "demo 96": "end-to-end/demo 96"}
SAME = "sampler/bundled"


def started(rows: list[Row]) -> str:
    """Import, load and first result, in one process after the other."""
    found = by_name(rows, "startup/parts")
    return table(["", "time"], [[name, seconds(row["ms"])] for name, row in found.items()])


def startup(rows: list[Row]) -> str:
    """Whole processes."""
    lines = [
        [
            name,
            seconds(row["ms"]),
            seconds(row["cpu_ms"]),
            seconds(row["target_ms"]) if "target_ms" in row else "-",
        ]
        for name, row in by_name(rows, "startup/process").items()
    ]
    return table(["", "from start to exit", "processor time", "target: below"], lines)


def install(rows: list[Row]) -> str:
    """The runtime for a CPU in a new environment."""
    (row,) = by_name(rows, "startup/install").values()
    if "not_measured" in row:
        return f"Not measured: {row['not_measured']}."
    largest = ", ".join(f"{name} {mb:.0f}" for name, mb in row["largest_mb"].items())
    return (
        f"`{row['contestant']}` in a new environment: {row['installed_mb']:.0f} MB "
        f"(target: below {row['target_mb']}), {seconds(row['ms'])}. "
        f"The largest, in MB: {largest}."
    )


def end_to_end(rows: list[Row]) -> str:
    """Parts of the wall time by case; they sum to it."""
    cases = {name: by_name(rows, case) for name, case in OVERVIEW_CASES.items()}
    names = dict.fromkeys(part for found in cases.values() for part in found)
    lines = []
    for name in names:
        cells = []
        for found in cases.values():
            row = found.get(name)
            cells += [seconds(row["ms"]), f"{row['share']:.1%}"] if row else ["-", "-"]
        lines.append([f"**{name}**" if name == TOTAL else name, *cells])
    head = ["", *(cell for name in cases for cell in (name, "share"))]
    said = [f"{name}: {_work(found[TOTAL])}" for name, found in cases.items()]
    return table(head, lines) + "\n\n" + "\n".join(f"- {line}." for line in said)


def _work(row: Row) -> str:
    return (
        f"{row['slices']} slices, {row['samples']} samples, {row['evaluations']} evaluations "
        f"({row['evaluations_with_padding']} with padding), {seconds(row['ms_a_slice'])} a slice, "
        f"{reached(row)} of the floor; {row['backend']}"
    )


def breakdown_picture(rows: list[Row]) -> str:
    """Where the time of configuration A goes."""
    found = by_name(rows, OVERVIEW_CASES["A 192"])
    parts = {name: row["ms"] / 1e3 for name, row in found.items() if name != TOTAL}
    return shares("seconds from NIfTI to NIfTI, A at 192 x 192", parts)


def memory(rows: list[Row]) -> str:
    """Peaks and bounds."""
    lines = []
    for row in rows:
        if "peak_mb" not in row:
            continue
        case = row["case"].removeprefix("memory/").replace("/", " ")
        bound = f"{row['bound_mb']:.0f} MB" if "bound_mb" in row else "-"
        holds = {True: "yes", False: "**no**", None: "-"}[row.get("within")]
        floor = f"{row['floor_mb']:.0f} MB" if "floor_mb" in row else "-"
        lines.append([case, row["contestant"], f"{row['peak_mb']:.0f} MB", bound, holds, floor])
    return table(["", "", "peak", "stated before", "holds", "cannot be less than"], lines)


def memory_growth(rows: list[Row]) -> str:
    """Lines through the peaks."""
    lines = [
        [
            row["case"].removeprefix("memory/"),
            f"{row['slope_mb']:.2f} MB each",
            f"{row['intercept_mb']:.0f} MB",
            f"{row['growth']:.1%}",
            "yes" if row["constant"] else "no",
        ]
        for row in rows
        if row["contestant"] == LINE
    ]
    return table(["", "grows by", "from", "of the peak", "constant"], lines)


def scaling(rows: list[Row]) -> str:
    """Lines through the times, and points."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if row["contestant"] == LINE):
        found = by_name(rows, case)
        line = found[LINE]
        points = ", ".join(
            f"{name}: {seconds(row['ms'])}" for name, row in found.items() if name != LINE
        )
        lines.append(
            [
                case.removeprefix("scaling/"),
                points,
                f"{seconds(line['slope_ms'])} a {line['slope_of']}",
                f"{line['r2']:.4f}",
                f"{line['largest_residual']:.1%}",
                "yes" if line["linear"] else "**no**",
            ]
        )
    return table(["", "measured", "line", "R2", "largest residual", "linear"], lines)


def scaling_others(rows: list[Row]) -> str:
    """What is not a line: sizes, threads, workers, padding."""
    straight = {row["case"] for row in rows if row["contestant"] == LINE}
    lines = [
        [
            row["case"].removeprefix("scaling/"),
            row["contestant"],
            seconds(row["ms"]),
            reached(row),
            f"{row['of_padded']:.0%}" if "of_padded" in row else "-",
            seconds(row["setup_ms"]) if "setup_ms" in row else "-",
        ]
        for row in rows
        if row["case"] not in straight and "ms" in row
    ]
    head = ["", "", "time", "of the floor", "of what padding would take", "once"]
    return table(head, lines)


def scaling_picture(rows: list[Row]) -> str:
    """Time against slices: bars measured, the line fitted."""
    found = by_name(rows, "scaling/slices")
    line = found.pop(LINE)
    numbers = [int(name) for name in found]
    measured = [row["ms"] / 1e3 for row in found.values()]
    fitted = [(line["intercept_ms"] + line["slope_ms"] * n) / 1e3 for n in numbers]
    return mermaid(
        [
            "xychart-beta",
            '    title "seconds against slices: measured, and the line"',
            f"    x-axis [{', '.join(map(str, numbers))}]",
            f'    y-axis "seconds" 0 --> {1.1 * max(measured):.3g}',
            f"    bar [{', '.join(f'{v:.3g}' for v in measured)}]",
            f"    line [{', '.join(f'{v:.3g}' for v in fitted)}]",
        ]
    )


def sampler(rows: list[Row]) -> str:
    """Quality against evaluations."""
    lines = []
    for name, row in by_name(rows, SAME).items():
        if "ms" not in row:
            continue
        far = [row.get(f"{key}_distance") for key in ("mean", "spread", "probability", "volume")]
        preset = f" ({row['preset']})" if row.get("preset") else ""
        marked = " *" if row.get("extrapolated_from_steps") else ""
        lines.append(
            [
                name + preset,
                seconds(row["ms"]) + marked,
                spread(row.get("quality_from_noise", row["quality"])),
                *("-" if value is None else f"{value:.4f}" for value in far),
            ]
        )
    head = ["", "a sample", "spread kept", "mean", "spread", "probability", "volume"]
    return table(head, lines)


def sampler_picture(rows: list[Row]) -> str:
    """Distance of the mean image from the dense run, by solver and evaluations."""
    found = by_name(rows, SAME)
    shown = {
        name: row["mean_distance"]
        for name, row in found.items()
        if name.startswith(("dpmpp_2m", "ddim", "unipc_2")) and "mean_distance" in row
    }
    return bars("distance of the mean image from 100 evaluations", shown)


def kernels(rows: list[Row]) -> str:
    """Array work of the loop on a CPU."""
    lines: list[list[str]] = []
    for row in rows:
        if "share_of_evaluation" in row:
            share = f"{row['share_of_evaluation']:.2%}"
            case = row["case"].removeprefix("kernels/")
            lines.append([case, row["contestant"], seconds(row["ms"]), reached(row), share])
    head = ["", "", "time", "of its floor", "of an evaluation's floor"]
    return table(head, lines)


def compiled_kernels(rows: list[Row]) -> str:
    """Triton kernels as compiled; times are of a GPU."""
    cells: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "registers" in row:
            cells.setdefault(row["case"].removeprefix("kernels/Triton "), {})[
                row["contestant"].removeprefix("compiled for ")
            ] = row
    archs = list(next(iter(cells.values())))
    lines = [
        [
            name,
            *(f"{f[a]['registers']} / {f[a]['spilled_bytes']}" for a in archs),
            f[archs[0]]["not_measured"],
        ]
        for name, f in cells.items()
    ]
    return table(["registers a thread / bytes spilled", *archs, "time not measured"], lines)


def export_time(rows: list[Row]) -> str:
    """Stages, and files."""
    lines = []
    for row in rows:
        case = row["case"].removeprefix("export/")
        size = f"{row['mb']:.1f} MB" if "mb" in row else "-"
        if "not_measured" in row:
            lines.append([case, row["contestant"], f"not measured: {row['not_measured']}", size])
        elif "ms" in row:
            lines.append([case, row["contestant"], seconds(row["ms"]), size])
    return table(["", "", "time", "size"], lines)


def spent(rows: list[Row]) -> str:
    """Minutes of every question."""
    lines = [[row["contestant"], seconds(row["ms"])] for row in rows]
    return table(["question", "time"], lines)
