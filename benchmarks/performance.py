"""docs/performance.md and the figures of README.md, from the rows of the last runs.

`python -m benchmarks.performance` writes them between their markers; `python -m benchmarks.all`
measures first. A test holds pages and rows together, and finds figures that were typed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import answers, run_answers
from benchmarks.answers import NOT_MEASURED, Row, Rows, by_name, seconds, times
from benchmarks.device import ROWS
from benchmarks.gpu_table import TABLES as GPU_TABLES
from benchmarks.gpu_targets import found as found_on_gpu
from benchmarks.gpu_targets import read as read_gpu
from benchmarks.harness import RESULTS, load
from benchmarks.one_slice import BF16, CASE, FAST, KEPT, OURS, PUBLISHED
from benchmarks.spread_table import table, with_blocks

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": ROOT / "README.md", "performance.md": ROOT / "docs" / "performance.md"}
BLOCKS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "one slice": ("one_slice", answers.one_slice),
    "one slice, picture": ("one_slice", answers.speed_picture),
    "network": ("network", answers.network),
    "sampler": ("sampler", run_answers.sampler),
    "sampler, picture": ("sampler", run_answers.sampler_picture),
    "end to end": ("end_to_end", run_answers.end_to_end),
    "end to end, picture": ("end_to_end", run_answers.breakdown_picture),
    "start-up": ("startup", run_answers.startup),
    "start-up, parts": ("startup", run_answers.started),
    "installation": ("startup", run_answers.install),
    "memory": ("memory", run_answers.memory),
    "memory, growth": ("memory", run_answers.memory_growth),
    "scaling": ("scaling", run_answers.scaling),
    "scaling, picture": ("scaling", run_answers.scaling_picture),
    "scaling, others": ("scaling", run_answers.scaling_others),
    "kernels": ("kernels", run_answers.kernels),
    "kernels, compiled": ("kernels", run_answers.compiled_kernels),
    "export": ("export_time", run_answers.export_time),
    "time of all": ("all", run_answers.spent),
}
"""Block of docs/performance.md -> its question, and what makes the block of its rows."""
WITHOUT_ORIGIN = ("picture", "installation", "growth", "others", "parts", "compiled", "one slice")


@dataclass(frozen=True)
class Target:
    """A figure that was set before anything was measured."""

    what: str
    limit: float
    show: Callable[[float], str]
    value: Callable[[Rows], float]
    least: bool = False

    def line(self, rows: Rows) -> list[str]:
        """Target, figure, verdict."""
        sign = "at least" if self.least else "below"
        try:
            value = self.value(rows)
        except (KeyError, StopIteration, ValueError):  # no such row, no row at all
            return [self.what, f"{sign} {self.show(self.limit)}", "not measured", "-"]
        met = value >= self.limit if self.least else value < self.limit
        verdict = "yes" if met else "**no**"
        return [self.what, f"{sign} {self.show(self.limit)}", self.show(value), verdict]


def _factor(name: str) -> Callable[[Rows], float]:
    return lambda rows: answers.factors(rows["one_slice"])[name]


def _started(name: str) -> Callable[[Rows], float]:
    return lambda rows: float(by_name(rows["startup"], "startup/process")[name]["ms"])


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _installed_mb(rows: Rows) -> float:
    return float(next(iter(by_name(rows["startup"], "startup/install").values()))["installed_mb"])


def _denoiser(rows: Rows) -> float:
    return float(by_name(rows["end_to_end"], "end-to-end/A 192")["denoiser"]["share"])


def _worst_residual(rows: Rows) -> float:
    axes = ("scaling/slices", "scaling/samples", "scaling/steps")
    return max(by_name(rows["scaling"], axis)["line"]["largest_residual"] for axis in axes)


def _worst_growth(rows: Rows) -> float:
    axes = ("memory/slices", "memory/samples")
    lines = {row["case"]: row for row in rows["memory"] if row["contestant"] == "line"}
    return max(abs(lines[axis]["growth"]) for axis in axes)


def _worst_bound(rows: Rows) -> float:
    return max(row["peak_mb"] / row["bound_mb"] for row in rows["memory"] if "bound_mb" in row)


TARGETS = (
    *(
        Target(name, limit, times, _factor(name), least=True)
        for name, limit in {
            "the runtime: the same plan in eager PyTorch": 3.5,
            "the same, memory kept": 1.6,
            "the whole: the published procedure": 100,
            "the whole, memory kept": 48,
            "the fast preset: the published procedure": 250,
        }.items()
    ),
    Target("wall time inside the denoiser, A 192", 0.9, _percent, _denoiser, least=True),
    Target("`tadiff-rt info`", 500, seconds, _started("tadiff-rt info")),
    Target("a first slice, from start to exit", 6000, seconds, _started("tadiff-rt predict")),
    Target("installation for a CPU", 350, lambda mb: f"{mb:.0f} MB", _installed_mb),
    Target("time linear in slices, samples, steps: residual", 0.05, _percent, _worst_residual),
    Target("memory constant in slices, samples: growth", 0.05, _percent, _worst_growth),
    Target("peak memory over what was stated before", 1.0, _percent, _worst_bound),
    Target(
        "all of these measurements",
        25 * 6e4,
        seconds,
        lambda rows: float(by_name(rows["all"], "all")["all"]["ms"]),
    ),
)


def targets(rows: Rows) -> str:
    """All targets, measured or not."""
    return table(["", "target", "measured", "met"], [target.line(rows) for target in TARGETS])


def summary(rows: Rows) -> str:
    """What README.md says."""
    if not rows["one_slice"]:
        return NOT_MEASURED
    every = by_name(rows["one_slice"], CASE)
    shown = dict.fromkeys(name.removesuffix(KEPT) for name in every if "ms" in every[name])
    lines = []
    for name in shown:
        row, kept = every.get(name), every.get(name + KEPT)
        said = row or kept
        faster = times(every[PUBLISHED]["ms"] / said["ms"])
        cells = [seconds(found["ms"]) if found else "-" for found in (row, kept)]
        title = f"**{name}**" if name in (OURS, BF16, FAST) else name
        quality = said["quality"]
        lines.append(
            [title, *cells, faster, answers.spread(quality), answers.certificate(quality)]
        )
    head = [
        CASE,
        "time",
        "memory kept",
        "against the published",
        "spread kept",
        "certificate of the plan",
    ]
    found = answers.factors(rows["one_slice"])
    ours = every[OURS]
    against = [f"{times(value)} {name}" for name, value in found.items()]
    return "\n\n".join(
        [
            table(head, lines),
            f"Factors of this runtime, default where nothing else is said: {'; '.join(against)}. "
            f"It reaches {answers.reached(ours)} of its floor: its arithmetic and traffic at the "
            "rates of a matrix product and a copy that were measured beside it.",
            _started_summary(rows),
            f"On a GPU: {gpu_summary()}",
            answers.machine(rows["one_slice"]),
        ]
    )


def _started_summary(rows: Rows) -> str:
    if not rows["startup"]:
        return f"Start: {NOT_MEASURED}"
    found = by_name(rows["startup"], "startup/process")
    info, predict, fast = (
        seconds(found[f"tadiff-rt {name}"]["ms"]) for name in ("info", "predict", "predict --fast")
    )
    return (
        f"`tadiff-rt info` takes {info}, a forecast of one slice of the bundled case with five "
        f"samples {predict} from start to exit ({fast} with `--fast`)."
    )


def gpu_summary() -> str:
    """Which tables of docs/gpu.md have rows."""
    rows = read_gpu(RESULTS / f"{ROWS}.jsonl")
    if not rows:
        return "not measured: none was available. [docs/gpu.md](docs/gpu.md) has what will be."
    measured = [name for name, (begin, _) in GPU_TABLES.items() if found_on_gpu(rows, begin[0])]
    return f"{rows[-1]['gpu']}, in [docs/gpu.md](docs/gpu.md): {', '.join(measured)}."


def blocks(rows: Rows) -> dict[str, dict[str, str]]:
    """Page -> block -> text."""
    page = {"targets": targets(rows)}
    for name, (question, make) in BLOCKS.items():
        found = rows[question]
        text = make(found) if found else NOT_MEASURED
        if found and not any(word in name for word in WITHOUT_ORIGIN):
            text += f"\n\n{answers.machine(found)}"
        page[name] = text
    if rows["one_slice"]:
        page["one slice"] += f"\n\n{answers.machine(rows['one_slice'])}"
    rates = [
        row for found in rows.values() for row in found if row.get("no_floor") == "it is the floor"
    ]
    page["rates"] = answers.rates(rates) if rates else NOT_MEASURED
    page["GPU"] = gpu_summary().replace("docs/gpu.md", "gpu.md")
    return {"README.md": {"performance": summary(rows)}, "performance.md": page}


def read(folder: Path) -> Rows:
    """The last rows of every question that has a block."""
    names = dict.fromkeys(question for question, _ in BLOCKS.values())
    return {name: load(name, folder) for name in names}


def write(folder: Path) -> None:
    """Writes both pages from the rows in `folder`."""
    for name, found in blocks(read(folder)).items():
        path = PAGES[name]
        path.write_text(with_blocks(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)
