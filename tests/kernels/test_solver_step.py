"""The fused solver row against `tadiff_rt.solvers.solve` on numpy arrays, bit for bit.

On a GPU the kernels compile and run; elsewhere conftest.py turns on Triton's interpreter. Both
execute the same IEEE operations, so bits that are equal here are equal there.
"""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tadiff_kernels import philox
from tadiff_kernels.ahead import Variant, check_against, compile_variants
from tadiff_kernels.solver_step import (
    solver_start,
    solver_start_reference,
    solver_step,
    solver_step_reference,
)
from tadiff_kernels.solver_step_triton import BLOCK, launch, launch_start
from tadiff_rt import noise
from tadiff_rt.plan import COLUMNS, SolverPlan
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, noised, plan_at, solve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLE = Path(__file__).parent / "resources/solver_step.json"
SEED = 0xDEADBEEF_0BADCAFE
ROWS = [(3, 1), (2**31 + 5, 2**32 - 1), (0, 0)]
NEVER = 2**31 - 1
SCHEDULE = NoiseSchedule.linear()

SHAPES = {
    "one program, part of a counter": (2, 5, 7),
    "two programs, channels that begin inside a counter": (2, 17, 19),
    "whole counters": (1, 16, 20),
    "fewer voxels than a counter has elements": (2, 1, 2),
}


def deliver(array: np.ndarray, form: str, dtype: torch.dtype) -> torch.Tensor:
    """The values of (b, c, h, w) `array`, laid out as a network leaves them."""
    b, c, h, w = array.shape
    tensor = torch.from_numpy(array).to(DEVICE, dtype)
    if form == "contiguous":
        return tensor
    if form == "channels_last":  # a view of all seven outputs; the others are not finite
        all_seven = torch.full((b, 7, h, w), math.nan, device=DEVICE, dtype=dtype)
        all_seven = all_seven.to(memory_format=torch.channels_last)
        view = all_seven[:, :3] if c == 3 else all_seven[:, 3:]
    else:  # cropped out of a padded image, columns first
        padded = torch.full((b, w + 2, c, h + 5), math.nan, device=DEVICE, dtype=dtype)
        view = padded.permute(0, 2, 3, 1)[:, :, 4:-1, 1:-1]
    view.copy_(tensor)
    assert not view.is_contiguous() or view.numel() == h * w
    return view


class Run:
    """The device's side of one run: buffers full of garbage, but for what the caller resets."""

    def __init__(self, plan: SolverPlan, x: np.ndarray, rows, *, history=None, seed=SEED) -> None:
        b, _, h, w = x.shape
        self.plan = plan
        self.history = plan.history if history is None else history
        self.behind: list[torch.Tensor] = []
        self.x = self._buffer(b, 3, h, w).copy_(torch.from_numpy(x))
        self.estimates = self._buffer(self.history + 1, b, 3, h, w)
        self.fused = self._buffer(b, 4, h, w).zero_()
        self.broken = torch.full((b,), NEVER, dtype=torch.int32, device=DEVICE)
        self.table = torch.tensor(plan.table, dtype=torch.float32, device=DEVICE)
        self.rows = philox.row_words(rows, DEVICE)
        self.seed = philox.draw_words(seed, 0, DEVICE)[:2].contiguous()

    def _buffer(self, *shape: int) -> torch.Tensor:
        """NaN, with as many NaN behind as programs could write past the end."""
        size = math.prod(shape)
        flat = torch.full((size + 8 * BLOCK,), math.nan, device=DEVICE)
        self.behind.append(flat[size:])
        return flat[:size].view(shape)

    def arguments(self, eps, logits, i: int, x0_range=(), noisy=None) -> tuple:
        noisy = bool(self.plan.coef_noise.any()) if noisy is None else noisy
        buffers = (self.x, self.estimates, self.fused, self.broken, eps, logits)
        device = (self.table, self.rows, self.seed)
        return (*buffers, *device, i, self.history, noisy, list(x0_range))

    def x0(self, i: int) -> np.ndarray:
        return self.estimates[i % (self.history + 1)].cpu().numpy()


def outputs(shape, steps: int, dtype: torch.dtype = torch.float32) -> tuple:
    """x_T, eps and logits of every row; float32 numbers that `dtype` holds exactly."""
    b, h, w = shape
    rng = np.random.default_rng(20250701)

    def normals(*size: int) -> np.ndarray:
        values = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
        return values.to(dtype).to(torch.float32).numpy()

    x = rng.standard_normal((b, 3, h, w)).astype(np.float32)
    return x, normals(steps, b, 3, h, w), normals(steps, b, 4, h, w)


def kernel_noise(rows, step: int, shape) -> np.ndarray:
    out = torch.full((len(rows), *shape), math.nan, device=DEVICE)
    drawn = philox.normal(
        philox.draw_words(SEED, step, DEVICE), philox.row_words(rows, DEVICE), out
    )
    return drawn.cpu().numpy()


def torch_noise(rows, step: int, shape) -> np.ndarray:
    return philox.normal_reference(SEED, rows, step, shape, DEVICE).cpu().numpy()


FORMS = [(launch, kernel_noise), (solver_step_reference, torch_noise)]
BOTH = pytest.mark.parametrize(("step", "drawn"), FORMS, ids=["kernel", "reference"])


def check_run(step, drawn, plan, shape, *, form="contiguous", dtype=torch.float32, x0_range=None,
              history=None) -> None:  # fmt: skip
    """Every state, every x0 and the fused logits have the bits of `solve`; zeros have no sign."""
    x, eps, logits = outputs(shape, plan.num_steps, dtype)
    rows = ROWS[: len(x)]
    states: list[np.ndarray] = []

    def denoise(state, t, i):
        states.append(state.copy())
        return eps[i], logits[i]

    expected, fused = solve(
        denoise, x, plan, lambda i: drawn(rows, i + 1, x.shape[1:]), x0_range=x0_range
    )
    states.append(expected)
    run = Run(plan, x, rows, history=history)
    for i in range(plan.num_steps):
        given = (deliver(values[i], form, dtype) for values in (eps, logits))
        step(*run.arguments(*given, i, x0_range or ()))
        np.testing.assert_array_equal(run.x.cpu().numpy(), states[i + 1], err_msg=f"x of row {i}")
    assert expected.dtype == np.float32
    assert all(part.isnan().all() for part in run.behind)
    np.testing.assert_array_equal(run.fused.cpu().numpy(), fused)
    assert run.broken.tolist() == [NEVER] * len(x)


PLANS = {
    "no history": make_plan(SCHEDULE, "ddim", 4),
    "one earlier estimate": make_plan(SCHEDULE, "dpmpp_2m", 4),
    "two earlier estimates": make_plan(SCHEDULE, "unipc_3", 5),
    "noise alone": make_plan(SCHEDULE, "ddpm", 3),
    "noise and history": make_plan(SCHEDULE, "sde_dpmpp_2m", 4),
}


@BOTH
@pytest.mark.parametrize("name", PLANS)
def test_a_run_has_the_bits_of_solve(step, drawn, name):
    check_run(step, drawn, PLANS[name], (2, 5, 7))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_size_has_the_bits_of_solve(shape):
    plan = make_plan(SCHEDULE, "sde_dpmpp_2m", 3)
    assert plan.coef_noise[1]
    assert plan.coef_x0_prev[1]
    check_run(launch, kernel_noise, plan, shape, form="cropped")


def test_three_earlier_estimates_and_more_rows_than_slots():
    """No solver at hand reads three; a table of its own does, from its fourth row on."""
    base = PLANS["two earlier estimates"]
    rng = np.random.default_rng(1)
    columns = {name: getattr(base, name) for name in COLUMNS}
    for k, name in enumerate(("coef_x0_prev", "coef_x0_prev2", "coef_x0_prev3"), start=1):
        columns[name] = np.where(np.arange(5) >= k, rng.standard_normal(5), 0.0)
    plan = SolverPlan(**columns, solver="made up", grid="made up")
    assert plan.history == 3
    for step, drawn in FORMS:
        check_run(step, drawn, plan, (1, 3, 4))


def test_a_longer_ring_than_the_plan_needs():
    check_run(launch, kernel_noise, PLANS["one earlier estimate"], (1, 3, 4), history=3)


@BOTH
@pytest.mark.parametrize("form", ["channels_last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_outputs_of_any_float_and_strides(step, drawn, form, dtype):
    plan = plan_at(SCHEDULE, "dpmpp_2m", [40.0, 3.0])
    check_run(step, drawn, plan, (2, 5, 7), form=form, dtype=dtype)


@BOTH
def test_estimates_are_clipped_as_solve_does(step, drawn):
    """The first rows magnify eps a hundred times: most of x0 is outside."""
    check_run(step, drawn, PLANS["one earlier estimate"], (2, 5, 7), x0_range=(-0.1, 0.7))


def test_the_newest_estimate_is_in_its_slot():
    plan = PLANS["one earlier estimate"]
    x, eps, logits = outputs((1, 3, 4), plan.num_steps)
    run = Run(plan, x, ROWS[:1])
    for i in range(plan.num_steps):
        before = run.x.cpu().numpy().copy()
        given = (deliver(values[i], "contiguous", torch.float32) for values in (eps, logits))
        launch(*run.arguments(*given, i))
        sigma, alpha = np.float32(plan.sigma[i]), np.float32(plan.alpha[i])
        np.testing.assert_array_equal(run.x0(i), (before - sigma * eps[i]) / alpha)


def run_rows(step, run: Run, eps: np.ndarray, logits: np.ndarray) -> None:
    for i in range(run.plan.num_steps):
        given = (torch.from_numpy(values[i]).to(DEVICE) for values in (eps, logits))
        step(*run.arguments(*given, i))


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_row_that_is_not_finite_is_remembered(step, drawn, bad):
    """In the last voxel of eps or of logits that have no weight; other batch rows do not care."""
    plan = make_plan(SCHEDULE, "ddim", 3)
    x, eps, logits = outputs((3, 17, 19), 3)
    assert plan.mask_weight[0] == 0
    logits[0, 0, 3, -1, -1] = bad
    eps[1, 0, 2, -1, -1] = eps[1, 2, 2, -1, -1] = eps[2, 2, 0, 0, 0] = bad
    run = Run(plan, x, ROWS)
    with np.errstate(invalid="ignore"):  # of the interpreter
        run_rows(step, run, eps, logits)
    assert run.broken.tolist() == [0, NEVER, 1]
    assert run.fused[0].isfinite().all()
    assert run.x[1].isfinite().all()


@BOTH
def test_huge_values_are_finite(step, drawn):
    plan = plan_at(SCHEDULE, "ddim", [1.0])
    x, eps, logits = outputs((1, 3, 4), 1)
    eps[...], logits[...] = -3e38, 3e38
    run = Run(plan, x, ROWS[:1])
    step(
        *run.arguments(
            torch.from_numpy(eps[0]).to(DEVICE), torch.from_numpy(logits[0]).to(DEVICE), 0
        )
    )
    assert run.broken.tolist() == [NEVER]


def test_clipping_keeps_what_is_not_a_number():
    plan = make_plan(SCHEDULE, "ddim", 1)
    x, eps, logits = (torch.from_numpy(a).to(DEVICE) for a in outputs((1, 3, 4), 1))
    eps[0, 0, 1, 2, 3] = math.nan
    run = Run(plan, x.cpu().numpy(), ROWS[:1])
    launch(*run.arguments(eps[0], logits[0], 0, (0.0, 1.0)))
    assert run.x.isnan().nonzero().tolist() == [[0, 1, 2, 3]]


def test_a_table_noise_key_and_rows_may_be_rewritten_in_place():
    """What a replayed graph relies on: no number of theirs is part of a launch."""
    plan, other = (make_plan(SCHEDULE, "sde_dpmpp_2m", 3, grid) for grid in ("logsnr", "karras"))
    x, eps, logits = outputs((1, 5, 7), 3)
    run, fresh = Run(plan, x, [(8, 9)], seed=5), Run(other, x, ROWS[:1])
    run_rows(launch, run, eps, logits)
    for name in ("x", "fused", "broken", "table", "rows", "seed"):
        initial = Run(other, x, ROWS[:1])
        getattr(run, name).copy_(getattr(initial, name))
    run_rows(launch, run, eps, logits)
    run_rows(launch, fresh, eps, logits)
    np.testing.assert_array_equal(run.x.cpu().numpy(), fresh.x.cpu().numpy())
    np.testing.assert_array_equal(run.fused.cpu().numpy(), fresh.fused.cpu().numpy())


def test_a_row_does_not_depend_on_its_batch():
    plan = make_plan(SCHEDULE, "sde_dpmpp_2m", 2)
    x, eps, logits = outputs((3, 5, 7), 2)
    together, alone = Run(plan, x, ROWS), Run(plan, x[1:2], ROWS[1:2])
    run_rows(launch, together, eps, logits)
    run_rows(launch, alone, eps[:, 1:2], logits[:, 1:2])
    np.testing.assert_array_equal(together.x[1].cpu().numpy(), alone.x[0].cpu().numpy())


STARTS = [(launch_start, kernel_noise), (solver_start_reference, torch_noise)]


@pytest.mark.parametrize(("start", "drawn"), STARTS, ids=["kernel", "reference"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_run_starts_from_noise_or_from_a_noised_guess(start, drawn, shape):
    plan = make_plan(SCHEDULE, "dpmpp_2m", 3, start_lam=-1.0)
    guess = outputs(shape, 1)[0]
    rows = ROWS[: len(guess)]
    run = Run(plan, np.full_like(guess, math.nan), rows)
    start(run.x, None, run.table, run.rows, run.seed)
    z = drawn(rows, noise.INITIAL, guess.shape[1:])
    np.testing.assert_array_equal(run.x.cpu().numpy(), z)
    start(run.x, torch.from_numpy(guess).to(DEVICE), run.table, run.rows, run.seed)
    np.testing.assert_array_equal(run.x.cpu().numpy(), noised(guess, z, plan))


def test_the_noise_is_that_of_the_definition():
    """x of a table that keeps nothing but noise, to the 1 ulp of the noise kernel."""
    zero = np.zeros(3)
    columns = {name: zero for name in COLUMNS}
    columns |= {"t": zero, "alpha": zero + 1, "coef_noise": zero + 1, "mask_weight": zero + 1 / 3}
    plan = SolverPlan(**columns, solver="noise", grid="none")
    x, eps, logits = outputs((2, 9, 7), 3)
    run = Run(plan, x, ROWS[:2])
    run_rows(launch, run, eps, logits)
    source = noise.NoiseSource(SEED)
    expected = source.step([ROWS[0], ROWS[1]], (3, 9, 7))(2)
    np.testing.assert_array_max_ulp(run.x.cpu().numpy(), expected, 1)


def test_the_operators_are_what_they_say():
    """Which arguments change, that nothing aliases, that they trace with fake tensors."""
    plan = PLANS["noise and history"]
    x, eps, logits = outputs((2, 5, 7), 1)
    eps[0, 1, 0, 0, 0] = math.inf
    run = Run(plan, x, ROWS[:2])
    given = (deliver(values[0], "channels_last", torch.float16) for values in (eps, logits))
    run.estimates.zero_()
    assert plan.mask_weight[3]  # all four buffers change
    torch.library.opcheck(solver_step, run.arguments(*given, 3, (-1.0, 1.0)))
    for guess in (None, torch.from_numpy(x).to(DEVICE)):
        torch.library.opcheck(
            solver_start, (torch.zeros_like(run.x), guess, run.table, run.rows, run.seed)
        )


def test_the_operators_run_the_kernels_or_their_reference():
    plan = PLANS["noise and history"]
    x, eps, logits = outputs((2, 5, 7), 4)
    runs = Run(plan, x, ROWS[:2]), Run(plan, x, ROWS[:2])
    forms = (
        (launch, launch_start)
        if DEVICE == "cuda"
        else (solver_step_reference, solver_start_reference)
    )
    operators = (torch.ops.tadiff.solver_step, torch.ops.tadiff.solver_start)
    for run, (step, start) in zip(runs, (forms, operators), strict=True):
        start(run.x, None, run.table, run.rows, run.seed)
        run_rows(step, run, eps, logits)
    for name in ("x", "estimates", "fused", "broken"):
        assert torch.equal(getattr(runs[0], name), getattr(runs[1], name)), name


NAMES = ("x", "estimates", "fused", "broken", "eps", "logits", "table", "rows", "seed", "i",
         "history", "noisy", "x0_range")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda t: t.double(), "x must be torch.float32 of shape .* got torch.float64"),
        ("x", lambda t: t[:, :2], r"x must be of shape \(b, 3, h, w\)"),
        ("x", lambda t: t.mT.contiguous().mT, "x must be contiguous, got strides"),
        ("estimates", lambda t: t[:1], r"estimates must be .* of shape \(2, 2, 3, 5, 7\)"),
        ("fused", lambda t: t[:, :3], r"fused must be .* of shape \(2, 4, 5, 7\)"),
        ("broken", lambda t: t.long(), "broken must be torch.int32"),
        ("eps", lambda t: t.double(), "eps must be of floats"),
        ("eps", lambda t: t[:, :, :4], r"eps must be .* shape \(2, 3, 5, 7\)"),
        ("logits", lambda t: t[:, :3], r"logits must be .* shape \(2, 4, 5, 7\)"),
        ("table", lambda t: t[:, :9], r"table must be .* of shape \(4, 10\)"),
        ("table", lambda t: t[0], r"table must be of shape \(K, 10\)"),
        ("rows", lambda t: t[:1], r"rows must be torch.int32 of shape \(2, 2\)"),
        ("seed", lambda t: t[:1], r"seed must be torch.int32 of shape \(2,\)"),
        ("i", lambda i: 4, "i must be a row of the table, 0 to 3, got 4"),
        ("history", lambda n: 4, "history must be 0 to 3, got 4"),
        ("x0_range", lambda r: [1.0], r"x0_range must be low and high, or empty, got \[1.0\]"),
        ("x0_range", lambda r: [1.0, 0.0], "x0_range must be low and high"),
    ],
)
def test_rejects_what_it_would_misread(name, change, message):
    plan = PLANS["noise and history"]
    x, eps, logits = outputs((2, 5, 7), 1)
    run = Run(plan, x, ROWS[:2])
    given = (torch.from_numpy(values[0]).to(DEVICE) for values in (eps, logits))
    arguments = dict(zip(NAMES, run.arguments(*given, 0), strict=True))
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        solver_step(*arguments.values())


def test_rejects_a_guess_of_another_shape():
    run = Run(PLANS["no history"], outputs((2, 5, 7), 1)[0], ROWS[:2])
    with pytest.raises(ValueError, match="guess must be"):
        solver_start(run.x, run.x[:1], run.table, run.rows, run.seed)


def test_the_operators_can_be_imported_without_triton():
    modules = "tadiff_kernels.solver_step, tadiff_kernels.ensemble_step"
    code = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def step_variant(dtype: str, history: int, noisy: bool, channels_last: bool) -> Variant:
    """As launched for a network output of `dtype` at 192 x 192, clipped."""
    words = {"broken": "*i32", "rows": "*i32", "seed": "*i32", "eps": f"*{dtype}"}
    types = {name: words.get(name, "*fp32") for name in NAMES[:9]} | {"logits": f"*{dtype}"}
    signature = {f"{name}_ptr": kind for name, kind in types.items()}
    strides = [f"{name}_{d}" for name in ("eps", "logits") for d in "bchw"]
    signature |= dict.fromkeys(("i", "P", "W", *strides), "i32")
    constants = {"HISTORY": history, "NOISY": noisy, "LOW": 0.0, "HIGH": 1.0}
    constants |= {"COLUMNS": len(COLUMNS), "BLOCK": BLOCK}
    if channels_last:  # Triton makes a constant of an argument that is 1
        constants |= {"eps_c": 1, "logits_c": 1}
    signature |= dict.fromkeys(constants, "constexpr")
    return Variant(
        "tadiff_kernels.solver_step_triton:_step",
        f"{dtype} history {history}{' noisy' * noisy}{' channels_last' * channels_last}",
        signature,
        constants,
        (*range(9), 10, 11),
        num_warps=2,
        enable_fp_fusion=False,
    )


def start_variant(guess: str) -> Variant:
    pointers = {"x_ptr": "*fp32", "guess_ptr": guess, "table_ptr": "*fp32"}
    pointers |= {"rows_ptr": "*i32", "seed_ptr": "*i32"}
    absent = ("guess_ptr",) if guess == "constexpr" else ()
    return Variant(
        "tadiff_kernels.solver_step_triton:_start",
        "from noise" if absent else "from a guess",
        {**pointers, "N": "i32", "BLOCK": "constexpr"},
        {"BLOCK": BLOCK},
        (0, 2, 3, 4, 5) if absent else tuple(range(6)),
        num_warps=2,
        enable_fp_fusion=False,
        skipped=absent,
    )


def variants() -> list[Variant]:
    """Every dtype of a network, the published sampler and the largest of everything."""
    return [
        step_variant("fp32", 1, False, False),
        step_variant("fp16", 1, False, True),
        step_variant("bf16", 1, False, True),
        step_variant("fp16", 0, True, True),
        step_variant("fp32", 3, True, False),
        start_variant("constexpr"),
        start_variant("*fp32"),
    ]


@pytest.mark.slow
def test_compiles_to_exact_operations_that_fit_every_gpu():
    """No float64, no approximation, nothing fused but what the noise fuses itself."""
    compiled = compile_variants(variants())
    check_against(TABLE, compiled)
    for found in compiled:
        assert ".approx" not in found.ptx, found.variant
        drawn = "nois" in found.variant or "guess" in found.variant
        assert ("fma.rn.f32" in found.ptx) == drawn, found.variant
        atomics = re.findall(r"\b(?:atom|red)\.\S+", found.ptx)
        assert all(a.endswith("min.s32") for a in atomics), found.variant


def large(plan: SolverPlan, b: int, size: int) -> tuple[Run, torch.Tensor, torch.Tensor]:
    """A run at a real size, its state drawn on the device, and half precision outputs."""
    rng = torch.Generator(DEVICE).manual_seed(5)
    run = Run(plan, np.zeros((b, 3, size, size), np.float32), [(k, 3) for k in range(b)])
    start = (run.x, None, run.table, run.rows, run.seed)
    torch.ops.tadiff.solver_start(*start)
    shape = (plan.num_steps, b, 7, size, size)
    both = torch.randn(shape, generator=rng, device=DEVICE, dtype=torch.float16)
    both = torch.stack([row.to(memory_format=torch.channels_last) for row in both])
    return run, both[:, :, :3], both[:, :, 3:]


def run_on_gpu(run: Run, eps: torch.Tensor, logits: torch.Tensor, step) -> None:
    run.fused.zero_()
    run.broken.fill_(NEVER)
    start = (run.x, None, run.table, run.rows, run.seed)
    torch.ops.tadiff.solver_start(*start)
    for i in range(run.plan.num_steps):
        step(*run.arguments(eps[i], logits[i], i, (0.0, 1.0)))


@pytest.mark.gpu
def test_a_run_at_full_size_has_the_bits_of_the_reference():
    runs = []
    for step in (torch.ops.tadiff.solver_step, solver_step_reference):
        run, eps, logits = large(make_plan(SCHEDULE, "dpmpp_2m", 5), 40, 192)
        run_on_gpu(run, eps, logits, step)
        runs.append(run)
    for name in ("x", "estimates", "fused", "broken"):
        assert torch.equal(getattr(runs[0], name), getattr(runs[1], name)), name


@pytest.mark.gpu
def test_a_replayed_cuda_graph_has_the_bits_of_the_loop():
    """Captured with one table, seed and rows, replayed with others."""
    plan, other = (make_plan(SCHEDULE, "sde_dpmpp_2m", 6, grid) for grid in ("logsnr", "karras"))
    run, eps, logits = large(plan, 5, 192)
    step = torch.ops.tadiff.solver_step
    run_on_gpu(run, eps, logits, step)  # compiles outside the capture
    captured = run.x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_on_gpu(run, eps, logits, step)
    run.table.copy_(torch.tensor(other.table, dtype=torch.float32))
    run.rows.copy_(philox.row_words([(9, k) for k in range(5)], "cpu"))
    run.seed.copy_(philox.draw_words(77, 0, "cpu")[:2])
    graph.replay()
    replayed = run.x.clone()
    run_on_gpu(run, eps, logits, step)
    assert torch.equal(replayed, run.x)
    assert not torch.equal(replayed, captured)


@pytest.mark.gpu
def test_a_row_that_begins_beyond_int32():
    """Element 2^31 of the state lies in the last row but one; eps and logits are one row, held."""
    b, size = 172, 2048
    plan = make_plan(SCHEDULE, "ddim", 1)
    x = torch.randn(3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    run = Run(plan, np.zeros((1, 3, 8, 8), np.float32), [(0, 0)])
    run.x = x.expand(b, 3, size, size).contiguous()
    run.estimates, run.fused = (
        torch.zeros_like(run.x)[None],
        torch.zeros(b, 4, size, size, device=DEVICE),
    )
    run.broken = torch.full((b,), NEVER, dtype=torch.int32, device=DEVICE)
    run.rows = philox.row_words([(0, 0)] * b, DEVICE)
    eps, logits = (torch.ones(1, c, size, size, device=DEVICE).expand(b, c, size, size) / 8
                   for c in (3, 4))  # fmt: skip
    launch(*run.arguments(eps, logits, 0))
    for buffer in (run.x, run.fused, run.estimates[0]):
        assert torch.equal(buffer[-1], buffer[0])
    assert not torch.equal(run.x[-1], x)
