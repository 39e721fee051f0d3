"""Where does the time of a whole forecast go?  `python -m benchmarks.end_to_end [STEPS]`

A process of `tadiff-rt predict`, from NIfTI on disk to the forecast on disk: wall time measured
outside, and inside where it went. The parts must sum to it: what is left is a row of its own and
may be 2 % at most. Five samples of 20 evaluations, on all cores:

- "demo 96": the bundled model and case, 6 slices. Two processes, whose files must be
  the same to the byte.
- "A 192": configuration A (32 channels, 2 residual blocks, 4 heads) at 192 x 192 with made-up
  weights, 2 slices of a made-up case of 24. Its bundle has no certificate: what it computes is
  compared with PyTorch in float64 while it is loaded, and that is part of loading.

Stages import what they need at first use. The floor is that of the evaluations alone, without the
padding of a last batch. STEPS evaluations in place of 20 are for trials. About four minutes on two
cores.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.floor import Roofline, Row, Work
from benchmarks.harness import row, save
from benchmarks.made_case import write_case
from benchmarks.network_cost import layers, works
from benchmarks.one_slice import Size, make_bundle
from benchmarks.plan_quality import plan_quality
from tadiff_rt.backends import available_cores, load_backend
from tadiff_rt.bundle import open_bundle
from tadiff_rt.sampling import SamplingRequest
from tadiff_train.network import NetworkConfig

LAUNCH = """
import time
times = [time.monotonic()]
import atexit, json, sys
import tadiff_rt.cli, tadiff_rt.commands
times.append(time.monotonic())
where = sys.argv.pop(1)
sys.argv[0] = "tadiff-rt"
def over():
    times.append(time.monotonic())
    open(where, "w").write(json.dumps(times))
atexit.register(over)
tadiff_rt.cli.main()
"""
"""What the installed command does, and when: the first statement, after imports, at the end."""

PARTS: dict[str, tuple[str, ...]] = {
    "start of Python and imports": ("start", "import"),
    "load and verify the engine": ("load",),
    "read and check the case": ("check", "read"),
    "prepare and condition": ("prepare", "condition"),
    "denoiser": ("denoise",),
    "noise, solver and statistics": ("noise", "solve", "statistics", "sample"),
    "map back": ("map back", "compare"),
    "write volumes and tables": ("write", "hash"),
    "draw the overview": ("overview",),
    "end of the process": ("end",),
}
"""Rows, and the stages that each is made of: of forecast.json, and three of the process."""
REST = "not accounted for"
DENOISER, TOTAL = "denoiser", "total"
ALLOWED_REST = 0.02
SAMPLES = 5
CLOCK_S = 0.005
"""By which stages of the process, read from two clocks, may be off."""


@dataclass(frozen=True)
class Case:
    """A forecast to time."""

    name: str
    engine: Path
    path: Path
    slices: str
    runs: int = 1
    steps: str = "auto"
    """Evaluations a sample, as the command takes them."""


@dataclass(frozen=True)
class Run:
    """One process."""

    wall: float
    parts: dict[str, float]
    """Seconds by row, `REST` among them; they sum to `wall`."""
    report: dict[str, Any]
    """Its forecast.json."""


def run(case: Case, out: Path) -> Run:
    """Forecasts in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    stamps = out.with_suffix(".times")
    command = [sys.executable, "-c", LAUNCH, str(stamps), "predict", "--quiet"]
    command += ["--engine", str(case.engine), "--case", str(case.path), "-o", str(out)]
    command += ["--day", "+60", "--treatment", "TMZ", "--samples", str(SAMPLES)]
    command += ["--slices", case.slices, "--steps", case.steps]
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    over = time.monotonic()
    if ended.returncode:
        raise SystemExit(f"{case.name}: the forecast failed: {ended.stderr[-500:]}")
    report = json.loads((out / "forecast.json").read_text())
    first, imported, last = json.loads(stamps.read_text())
    process = {"start": first - began, "import": imported - first, "end": over - last}
    return Run(over - began, parts(over - began, process, report["seconds"]), report)


def parts(
    wall: float, process: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by row of `PARTS` and `REST`, which sum to `wall`.

    Args:
        process: stages "start", "import" and "end".
        seconds: of forecast.json.

    Raises:
        SystemExit: a stage belongs to no row, was not reported or counted twice.
    """
    stages = {**process, **seconds}
    inside, other = stages.pop("total"), stages.pop("other")
    known = [stage for group in PARTS.values() for stage in group]
    if sorted(stages) != sorted(known):
        raise SystemExit(f"stages {sorted(stages)}, expected {sorted(known)}")
    found = {name: sum(stages[stage] for stage in group) for name, group in PARTS.items()}
    told = sum(seconds[stage] for stage in seconds if stage not in ("total", "other"))
    if abs(told + other - inside) > CLOCK_S or sum(found.values()) > wall + CLOCK_S:
        raise SystemExit(f"stages overlap: {stages} of {inside:.3f} s, {wall:.3f} s outside")
    return {**found, REST: wall - sum(found.values())}


def require_accounted(case: str, run: Run) -> None:
    """SystemExit where more than ALLOWED_REST of the wall time is in no part."""
    share = run.parts[REST] / run.wall
    if share > ALLOWED_REST:
        raise SystemExit(f"{case}: {share:.1%} of {run.wall:.2f} s are not accounted for")


def require_same(case: str, runs: Sequence[Run]) -> None:
    """SystemExit where two runs wrote different files; what the report says of time aside."""
    written = [run.report["files"] for run in runs]
    if any(files != written[0] for files in written):
        raise SystemExit(f"{case}: two runs gave different bytes")


def padded(rows: int, batch: int, *, partial: bool) -> int:
    """Images through the network for `rows` of them, where a batch may be `partial` or not."""
    return rows if partial else math.ceil(rows / batch) * batch


def needed(config: NetworkConfig, size: int, rows: int, batch: int, nfe: int) -> list[Work]:
    """What `rows` images cannot do without in every evaluation: full batches, and the last."""
    every = layers(config, size)
    full, last = divmod(rows, batch)
    found = [work.times(nfe * full) for work in works(every, batch, "fp32") if full]
    return found + [work.times(nfe) for work in works(every, last, "fp32") if last]


def rows(case: Case, folder: Path, roofline: Roofline) -> list[Row]:
    """Runs a case as often as it says, and its table: every part, what is left and the total."""
    ran = []
    for number in range(case.runs):
        ran.append(run(case, folder / f"{case.path.name}-{number}"))
        require_accounted(case.name, ran[-1])
    require_same(case.name, ran)
    bundle = open_bundle(case.engine)
    card, config = bundle.manifest.card, NetworkConfig(**bundle.manifest.network)
    (scenario,) = ran[0].report["scenarios"].values()
    said = scenario["sampling"]
    count, batch = SAMPLES * len(said["slices"]), said["batch"]
    asked = SamplingRequest(steps=case.steps)
    plan = asked.plan(card.schedule.build(), card.start_lam, bundle.manifest.optimised)
    computed = padded(count, batch, partial=load_backend("onnxruntime", bundle).partial)
    floor = needed(config, card.data.size, count, batch, plan.nfe)
    where = f"end-to-end/{case.name}"
    quality = {
        **plan_quality(plan, informed=card.start_lam is not None),
        "certified": bundle.manifest.denoisers[0].certificate is not None,
        "runs_with_the_same_bytes": case.runs,
    }
    table = [_part(where, name, ran, floor, roofline) for name in ran[0].parts]
    whole: Row = row(where, TOTAL, [run.wall for run in ran])
    columns = {
        "share": 1.0,
        "slices": len(said["slices"]),
        "samples": SAMPLES,
        "threads": available_cores(),
        "batch": batch,
        "evaluations": plan.nfe * count,
        "evaluations_with_padding": plan.nfe * computed,
        "ms_a_slice": round(whole["ms"] / len(said["slices"]), 2),
        "backend": ran[0].report["model"]["backend"],
        "quality": quality,
    }
    return [*table, {**whole, **roofline.columns(whole["ms"], floor), **columns}]


def _part(
    case: str, name: str, ran: Sequence[Run], floor: Sequence[Work], roofline: Roofline
) -> Row:
    share = statistics.median(run.parts[name] / run.wall for run in ran)
    entry: Row = row(case, name, [run.parts[name] for run in ran], share=round(share, 5))
    if name == DENOISER:
        entry.update(roofline.columns(entry["ms"], floor))
    else:
        entry["no_floor"] = "no evaluation of the network: nothing that it must compute"
    return {**entry, "quality": "a part of the total"}


def main(steps: str = "auto") -> None:
    """Writes the rows of both cases."""
    roofline = Roofline.of_this_cpu(available_cores())
    data = Path(__file__).parents[1] / "tadiff_rt" / "data"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made, _ = make_bundle(folder, Size(), ("fp32",))
        patient, demo = write_case(folder / "case"), data / "demo_case" / "sub-demo"
        cases = (
            Case("demo 96", data / "demo.tadiff", demo, "36:42", 2, steps),
            Case("A 192", made, patient, "11:13", 1, steps),
        )
        found = [entry for case in cases for entry in rows(case, folder, roofline)]
    save("end_to_end", [roofline.as_row("end-to-end"), *found])


if __name__ == "__main__":
    main(*sys.argv[1:])
