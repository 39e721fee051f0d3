"""How much of a spread does each sampler keep?  `python -m benchmarks.spread_table [--check]`

Writes the tables of docs/solvers.md between their markers, and docs/spread.svg. Numbers are exact:
with the ideal denoiser of a Gaussian a whole run is an affine map (`certify.analytic`). Only the
weights of two modes are counted, over chains with fixed noise. `--check` writes nothing and fails
where the committed tables are not what it would write.
"""

import io
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.certify import analytic
from tadiff_rt.certify.report import MASK_ERROR, MODE_ERROR, ORDERS, SPREAD_RATIO
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SOLVERS, SolverPlan, make_plan

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "solvers.md", DOCS / "spread.svg"

SCHEDULE = NoiseSchedule.linear()
STEPS = (5, 8, 10, 15, 20, 50)
STDS = (0.05, 0.1, 0.5)


@dataclass(frozen=True)
class Grid:
    """A choice of levels."""

    label: str
    name: str
    """Of `NoiseSchedule.levels`."""
    start_lam: float | None = None
    round_times: bool = False

    def plan(self, solver: str, steps: int) -> SolverPlan:
        """The run of a solver on these levels."""
        return make_plan(
            SCHEDULE, solver, steps, self.name, self.start_lam, round_times=self.round_times
        )

    def run(self, solver: str, steps: int, std: float) -> analytic.GaussianRun:
        """Its outcome on a Gaussian; an informed run starts from the noised mean."""
        informed = self.start_lam is not None
        return analytic.gaussian_run(self.plan(solver, steps), std, informed=informed)


NAMES = ("logsnr", "karras", "quadratic", "trailing", "linspace")
PLAIN = tuple(Grid(name, name) for name in NAMES)
LOGSNR, _, _, TRAILING, LINSPACE = PLAIN
ROUNDED = Grid("logsnr, round_times", "logsnr", round_times=True)
INFORMED = Grid("logsnr, start_lam = -2", "logsnr", start_lam=-2.0)
GRIDS = (LOGSNR, ROUNDED, INFORMED, *PLAIN[1:])


@dataclass(frozen=True)
class Measured:
    """A solver on a grid: STEPS by STDS."""

    ratio: NDArray[np.float64]
    """Sampled over true standard deviation."""
    bias: NDArray[np.float64]
    """Mean of the samples minus the true one."""


Found = dict[tuple[Grid, str], Measured]


def measure() -> Found:
    """Every solver on every grid."""
    found = {}
    for grid, solver in product(GRIDS, SOLVERS):
        runs = [[grid.run(solver, n, std) for std in STDS] for n in STEPS]
        found[grid, solver] = Measured(
            np.array([[run.spread_ratio for run in row] for row in runs]),
            np.array([[run.bias for run in row] for row in runs]),
        )
    return found


def keeps_spread(ratios: NDArray[np.float64]) -> bool:
    """Whether a certificate would accept these ratios."""
    low, high = SPREAD_RATIO
    return bool(((ratios >= low) & (ratios <= high)).all())


def spread_block(found: Found) -> str:
    """One table a grid, then what the tables leave out."""
    parts = []
    for grid in GRIDS:
        rows = []
        for solver in SOLVERS:
            cells = found[grid, solver].ratio
            rows.append([solver, *(_marked(_percent(c), keeps_spread(c)) for c in cells)])
        parts.append(table([grid.label, *map(str, STEPS)], rows))
    return "\n\n".join([*parts, _spread_facts(found)])


def _spread_facts(found: Found) -> str:
    last, published = SCHEDULE.num_train_timesteps, Grid("all", "all")
    loop, flow = (
        np.array([published.run(solver, last, std).spread_ratio for std in STDS])
        for solver in ("ddpm", "dpmpp_2m")
    )
    moved = max(abs(found[ROUNDED, s].ratio - found[LOGSNR, s].ratio).max() for s in SOLVERS)
    bias = {grid: max(abs(found[grid, s].bias).max() for s in SOLVERS) for grid in GRIDS}
    return "\n".join(
        [
            f"- All {last} trained timesteps: {_percent(loop)} with `ddpm`, the published loop; "
            f"{_percent(flow)} with `dpmpp_2m`.",
            f"- Whole times (`round_times`) move no entry by more than {100 * moved:.1f} points.",
            f"- The mean of the samples is off by at most {max(bias.values()):.4f} of the data "
            f"range in all of these runs, by at most {max(bias[TRAILING], bias[LINSPACE]):.4f} on "
            "`trailing` and `linspace`.",
        ]
    )


def final_step_block(steps: int = 20) -> str:
    """What the last step alone predicts, beside what a whole run gives."""
    rows = []
    for grid in PLAIN:
        plan = grid.plan("dpmpp_2m", steps)
        left = plan.sigma[-1] / plan.alpha[-1]
        last = _percent(np.array(STDS) / np.hypot(STDS, left))
        whole = np.array([grid.run("dpmpp_2m", steps, std).spread_ratio for std in STDS])
        rows.append([grid.label, f"{plan.t[-1]:.0f}", f"{left:.4f}", last, _percent(whole)])
    head = ["grid", "last t", "sigma/alpha", "last step alone", f"{steps} of dpmpp_2m"]
    return table(head, rows)


def masks_block() -> str:
    """Errors of masks by grid; order of convergence and error of mode weights by solver."""
    masks, modes = [], []
    for grid, solver in (*((grid, "dpmpp_2m") for grid in GRIDS), (LOGSNR, "dpmpp_2s")):
        label = grid.label + ", dpmpp_2s" * (solver == "dpmpp_2s")
        errors = [analytic.mask_error(grid.plan(solver, n), SCHEDULE) for n in STEPS]
        masks.append([label, *(_marked(f"{e:.3f}", e <= MASK_ERROR) for e in errors)])
    for solver in SOLVERS:
        weights = [analytic.mode_weight(LOGSNR.plan(solver, n)) for n in STEPS]
        errors = [weight - analytic.MODE_WEIGHTS[1] for weight in weights]
        order = analytic.observed_order(SCHEDULE, solver)
        cells = [_marked(f"{e:+z.3f}", abs(e) <= MODE_ERROR) for e in errors]
        modes.append([solver, f"{order:.1f}", str(ORDERS[solver]), *cells])
    by_grid = table(["mask error", *map(str, STEPS)], masks)
    by_solver = table(["mode error", "order seen", "theory", *map(str, STEPS)], modes)
    return f"{by_grid}\n\n{by_solver}"


def blocks(found: Found) -> dict[str, str]:
    """Every generated part of the page, by name."""
    short = {"final step": final_step_block(), "masks": masks_block()}
    return {"spread": spread_block(found), **short}


def _percent(ratios: NDArray[np.float64]) -> str:
    return " ".join(f"{100 * ratio:.0f}" for ratio in ratios)


def _marked(text: str, passes: bool) -> str:
    return f"**{text}**" if passes else text


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_blocks(page: str, blocks: dict[str, str]) -> str:
    """`page` with the text between the markers of every block replaced.

    Raises:
        ValueError: a block has not exactly one pair of markers.
    """
    for name, text in blocks.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        if not page.count(begin) == page.count(end) == 1 or page.index(begin) > page.index(end):
            raise ValueError(f"expected one block {begin} … {end}, and no other such marker")
        page = page[: page.index(begin)] + f"{begin}\n\n{text}\n\n" + page[page.index(end) :]
    return page


LINES = {
    "dpmpp_2m": ("#0072B2", "o", "-"),
    "unipc_2": ("#D55E00", "s", "-"),
    "dpmpp_3m": ("#009E73", "^", "-"),
    "sde_dpmpp_2m": ("#CC79A7", "D", "--"),
    "ddim": ("#000000", "v", "--"),
    "ddpm": ("#E69F00", "x", ":"),
}
"""Colours of Okabe and Ito 2008, told apart by any colour vision; marker and dash besides."""

PANELS = tuple(grid for grid in GRIDS if grid is not ROUNDED)
PICTURE_STD = 0.05


def picture(found: Found) -> bytes:
    """Spread against evaluations as SVG, one panel a grid; the same bytes every time.

    Ids: "panel0-SOLVER" of a line and "panel0-band", panels in the order of PANELS.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="tadiff", fonttype="none")
        matplotlib.rc("font", size=9)
        figure = Figure(figsize=(9.375, 5.6), layout="constrained")  # 900 px wide
        panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
        for at, (axes, grid) in enumerate(zip(panels, PANELS, strict=True)):
            axes.axhspan(*(100 * r for r in SPREAD_RATIO), color="#d9d9d9", gid=f"panel{at}-band")
            for solver, (colour, marker, dash) in LINES.items():
                values = 100 * found[grid, solver].ratio[:, STDS.index(PICTURE_STD)]
                look = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4}
                axes.plot(STEPS, values, label=solver, gid=f"panel{at}-{solver}", **look)
            axes.set(title=grid.label, xscale="log", ylim=(0, 130))
            axes.set_xticks(STEPS, list(map(str, STEPS)))
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel("network evaluations", fontsize=9)
        figure.supylabel(f"spread in % of the true one, std {PICTURE_STD:g}", fontsize=9)
        look = {"loc": "outside upper center", "ncols": len(LINES), "frameon": False}
        figure.legend(*axes.get_legend_handles_labels(), **look)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def main(*arguments: str) -> None:
    """Writes the tables and the picture, or with "--check" compares the tables."""
    if arguments not in ((), ("--check",)):
        raise SystemExit("usage: python -m benchmarks.spread_table [--check]")
    found = measure()
    page = PAGE.read_text(encoding="utf-8")
    fresh = with_blocks(page, blocks(found))
    if not arguments:
        PAGE.write_text(fresh, encoding="utf-8")
        PICTURE.write_bytes(picture(found))
    elif fresh != page:
        raise SystemExit(f"{PAGE} is out of date: run python -m benchmarks.spread_table")


if __name__ == "__main__":
    main(*sys.argv[1:])
