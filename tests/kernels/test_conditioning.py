"""All shifts of a request from one operator, against the network's own embeddings.

On a GPU the kernels compile and run; elsewhere conftest.py turns on Triton's interpreter.
"""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tadiff_export.split import Conditioner
from tadiff_kernels import conditioning_triton
from tadiff_kernels.accuracy import Budget, error_budget, relative_error
from tadiff_kernels.ahead import Variant, check_against, compile_variants
from tadiff_kernels.conditioning import NAMES, conditioning, conditioning_reference, pack
from tadiff_kernels.conditioning_triton import (
    PROJECT_STAGES,
    embed_constants,
    launch,
    project_constants,
)
from tadiff_train.network import NetworkConfig, TaDiffNet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

A = NetworkConfig()
B = NetworkConfig(num_res_blocks=1, num_heads=1)
C = NetworkConfig(model_channels=64, num_heads=8)
D = NetworkConfig(model_channels=64, channel_mult=(1, 2, 4, 8))
TINY = NetworkConfig(channel_mult=(1,), num_res_blocks=1, num_heads=1)  # p = 160
WIDE = NetworkConfig(  # 96 channels: no power of two
    model_channels=96, channel_mult=(1, 2), num_res_blocks=1, num_heads=1, attention_strides=(2,)
)
VISITS = (0.0, 84.0, 1061.5, 1400.0)
FAR = (40000.0, -30.0, 0.0, 20000.0)
EQUAL = (365.0, 365.0, 365.0, 365.0)
CODES = (0.0, 1.0, 3.0, 2.0)


def network(config: NetworkConfig, gain: float = 1.0) -> TaDiffNet:
    """Random weights, with Fourier frequencies of order 1 and embeddings `gain` times as large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        net = TaDiffNet(config)
        net.treats_embed[0].weight.data = torch.randn(config.model_channels // 2, 1)
    for embed in (net.time_embed, net.days_embed, net.treats_embed):
        embed[-1].weight.data *= gain
        embed[-1].bias.data *= gain
    return net.requires_grad_(False)


def packed(net: TaDiffNet) -> list[Tensor]:
    """The operator's weights of a network, on the device under test."""
    linears = [block.emb_layers[1] for block in net.residual_blocks()]
    weights = pack(
        net.treats_embed[0].weight,
        [list(mlp.parameters()) for mlp in (net.time_embed, net.days_embed, net.treats_embed[1:])],
        [(linear.weight, linear.bias) for linear in linears],
    )
    return [w.to(DEVICE) for w in weights]


class Float64Trigonometry(TorchFunctionMode):
    """Sines and cosines of the network's float32 angles, in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.cos, Tensor.sin):
            args = (args[0].double(),)
        return func(*args, **(kwargs or {}))


def defined(net: TaDiffNet, t: Tensor, days: Tensor, treatments: Tensor) -> Budget:
    """The budget of the network's own conditioner on the CPU, whose angles are float32."""

    def shifts(t: Tensor, days: Tensor, treatments: Tensor) -> Tensor:
        if t.dtype == torch.float32:
            return Conditioner(net)(t, days, treatments)
        try:
            with Float64Trigonometry():
                return Conditioner(net.double())(t, days, treatments)
        finally:
            net.float()  # exact: the weights were float32 before

    return error_budget(shifts, t, days, treatments)


def request(n: int, days: tuple[float, ...], codes: tuple[float, ...] = CODES) -> list[Tensor]:
    t = torch.linspace(1000, 1, n + 1)[1:] - 0.25
    return [t, torch.tensor([days]), torch.tensor([codes])]


def launched(arguments: list[Tensor], weights: list[Tensor]) -> Tensor:
    return launch(*(a.to(DEVICE) for a in arguments), weights).cpu()


def few_programs(monkeypatch) -> None:
    """The interpreter pays for programs, not for elements."""
    if DEVICE == "cpu":
        monkeypatch.setattr(conditioning_triton, "BLOCK_P", 1024)


CASES = [  # config, steps, days, gain
    pytest.param(A, 20, VISITS, 1.0, id="A"),
    pytest.param(A, 3, VISITS, 50.0, id="A-silu-saturates"),
    pytest.param(B, 20, VISITS, 1.0, id="B"),
    pytest.param(C, 6, FAR, 1.0, id="C-far"),
    pytest.param(D, 1, VISITS, 1.0, id="D-one-step"),
    pytest.param(TINY, 1, VISITS, 1.0, id="tiny-one-step"),
    pytest.param(TINY, 65, FAR, 1.0, id="tiny-last-tile-of-one-step"),
    pytest.param(TINY, 50, EQUAL, 1.0, id="tiny-equal-days"),
    pytest.param(WIDE, 3, FAR, 1.0, id="width-96"),
]


@pytest.mark.parametrize(("config", "n", "days", "gain"), CASES)
def test_is_the_conditioner_of_the_network(monkeypatch, config, n, days, gain):
    if config is not TINY:
        few_programs(monkeypatch)
    net, arguments = network(config, gain), request(n, days)
    defined(net, *arguments).check(launched(arguments, packed(net)))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "n"), [(A, 50), (C, 20), (D, 20)])
def test_is_the_conditioner_with_the_tiles_of_the_gpu(config, n):
    net, arguments = network(config), request(n, VISITS)
    defined(net, *arguments).check(launched(arguments, packed(net)))


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_reference_is_the_conditioner_of_the_network(config):
    """In float64, where only the order of sums of 4 mc products differs."""
    net, arguments = network(config), request(3, FAR)
    doubles = [a.double() for a in arguments]
    got = conditioning_reference(*doubles, [w.cpu().double() for w in packed(net)])
    budget = defined(net, *arguments)
    assert relative_error(got, budget.exact) <= 4 * config.model_channels * 2**-53


def test_operator_on_a_cpu_is_the_reference():
    weights = [w.cpu() for w in packed(network(TINY))]
    arguments = request(3, VISITS)
    got = conditioning(*arguments, weights)
    assert torch.equal(got, conditioning_reference(*arguments, weights))


def test_sessions_like_the_target_leave_the_bias(monkeypatch):
    """Equal days and codes: differences of exactly 0, where silu is 0."""
    net = network(TINY)
    weights = packed(net)
    weights[5][3 * 32 :] = 0  # what meets the time; and differences remain
    got = launched(request(2, EQUAL, codes=(1.0, 1.0, 1.0, 1.0)), weights)
    assert torch.equal(got, weights[6].cpu().expand(2, -1))


def test_channels_need_not_fill_a_tile(rng_weights):
    """p = 40: one tile of 32 channels and a quarter."""
    arguments, weights = request(17, VISITS), rng_weights(32, 40)
    cpu = [w.cpu() for w in weights]
    budget = error_budget(lambda *a: conditioning_reference(*a[:3], a[3:]), *arguments, *cpu)
    budget.check(launched(arguments, weights))


@pytest.fixture
def rng_weights():
    rng = torch.Generator().manual_seed(5)

    def make(mc: int, p: int) -> list[Tensor]:
        shapes = [(2, mc // 2), (3, mc, 2 * mc), (3, 2 * mc), (3, mc, 2 * mc), (3, mc)]
        shapes += [(4 * mc, p), (p,)]
        drawn = [torch.randn(shape, generator=rng) for shape in shapes]
        return [(w / math.sqrt(mc) if w.ndim > 1 else w).to(DEVICE) for w in drawn]

    return make


@pytest.mark.parametrize("mc", [32, 96])
def test_writes_every_element_and_nothing_else(monkeypatch, rng_weights, mc):
    """Neither past its outputs, for tiles and widths they do not fill, nor into its inputs."""
    guarded = []

    def poisoned(t: Tensor, rows: int, width: int) -> Tensor:
        buffer = torch.full((rows + 32, width), math.nan, device=DEVICE)
        guarded.append(buffer[rows:])
        return buffer[:rows]

    inputs = [*(a.to(DEVICE) for a in request(18, VISITS)), *rng_weights(mc, 72)]
    before = [a.clone() for a in inputs]
    with monkeypatch.context() as patch:
        # The interpreter allocates through the same name, with keywords.
        allocate = Tensor.new_empty
        patch.setattr(
            Tensor, "new_empty", lambda *a, **kw: allocate(*a, **kw) if kw else poisoned(*a)
        )
        got = launch(*inputs[:3], inputs[3:])
    assert got.isfinite().all()
    assert len(guarded) == 2
    assert all(guard.isnan().all() for guard in guarded)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_a_row_does_not_depend_on_its_neighbours(rng_weights):
    (t, *condition), weights = request(18, VISITS), rng_weights(32, 32)
    together = launched([t, *condition], weights)
    alone = launched([t[17:], *condition], weights)
    assert torch.equal(together[17:], alone)
    assert torch.equal(together, launched([t, *condition], weights))


def test_no_steps_no_rows(rng_weights):
    assert launched(request(0, VISITS), rng_weights(32, 32)).shape == (0, 32)


def test_what_is_not_a_number_shows(rng_weights):
    arguments, weights = request(2, VISITS), rng_weights(32, 32)
    arguments[0][1] = math.nan
    got = launched(arguments, weights)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


@triton.jit
def functions_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """Cosine, sine and SiLU of N numbers: (3, N)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < N, 0.0)
    tl.store(out_ptr + at, conditioning_triton._cosine(x, at < 0), at < N)
    tl.store(out_ptr + N + at, conditioning_triton._cosine(x, at >= 0), at < N)
    tl.store(out_ptr + 2 * N + at, conditioning_triton._silu(x), at < N)


def functions(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.full((3, len(x)), math.nan, device=DEVICE)
    block = 128 if DEVICE == "cuda" else 2**16
    functions_kernel[(triton.cdiv(len(x), block),)](x.to(DEVICE), out, len(x), BLOCK=block)
    return out.cpu().double().unbind()


QUARTERS = (torch.arange(-83443, 83444).double() * (math.pi / 2)).float()
"""The float32 next to every multiple of pi/2 up to 2^17: zeros, and where signs change."""

ANGLES = [
    pytest.param(QUARTERS, id="multiples of pi/2"),
    pytest.param(torch.nextafter(QUARTERS, torch.tensor(math.inf)), id="beside them"),
    pytest.param((QUARTERS.double() + math.pi / 4).float(), id="where quadrants meet"),
    pytest.param(torch.linspace(-(2.0**17), 2.0**17, 200_001), id="even"),
    pytest.param(torch.logspace(-30, 5, 100_001), id="from tiny to large"),
]


@pytest.mark.parametrize("x", ANGLES)
def test_cosine_and_sine_keep_their_bound(x):
    """Rounded last: 0.5; 1 - y/2 before it, its y = x² and their sum: 0.25 each; series: 0.05."""
    cosine, sine, _ = functions(x)
    assert (cosine - x.double().cos()).abs().max() <= 1.3 * 2**-24
    assert (sine - x.double().sin()).abs().max() <= 1.3 * 2**-24


def test_silu_keeps_its_bound():
    """Exponential 1.5, of which its argument 0.7; sum, reciprocal and product 0.5 each."""
    x = torch.cat([torch.linspace(-10, 10, 500_000), torch.linspace(10, 1e4, 10_000)])
    exact = x.double() * torch.sigmoid(x.double())
    assert (functions(x)[2] / exact - 1).abs().max() <= 3 * 2**-24


def test_silu_of_large_numbers():
    x = torch.tensor([-1e4, -100, -80, -0.0, 0.0, 100, 1e4])
    got = functions(x)[2]
    assert (got[:3].abs() < 1e-30).all()
    assert torch.equal(got[3:], x[3:].double())


def test_passes_the_checks_of_pytorch(rng_weights):
    arguments = [a.to(DEVICE) for a in request(3, VISITS)]
    torch.library.opcheck(conditioning, (*arguments, rng_weights(32, 40)))


class Exported(nn.Module):
    """The operator with weights as buffers: what an exported program holds."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        for name, weight in zip(NAMES, weights, strict=True):
            self.register_buffer(name, weight)

    def forward(self, t: Tensor, days: Tensor, treatments: Tensor) -> Tensor:
        weights = [getattr(self, name) for name in NAMES]
        return torch.ops.tadiff.conditioning(t, days, treatments, weights)


def test_exports_with_any_number_of_steps(rng_weights):
    module = Exported([w.cpu() for w in rng_weights(32, 40)])
    steps = {0: torch.export.Dim("n", min=1)}
    program = torch.export.export(
        module, tuple(request(5, VISITS)), dynamic_shapes=(steps, None, None)
    )
    arguments = request(9, FAR)
    assert torch.equal(program.module()(*arguments), module(*arguments))


def test_needs_no_triton_on_a_cpu():
    code = (
        "import sys; sys.modules['triton'] = None; import tadiff_kernels.conditioning, torch; "
        "assert torch.ops.tadiff.conditioning"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (0, lambda a: a.double(), r"t must be torch.float32 of shape \(2,\).*got torch.float64"),
        (0, lambda a: a[None], r"t must be .* of shape \(2,\)"),
        (1, lambda a: a[0], r"days must be .* of shape \(1, 4\)"),
        (2, lambda a: a.long(), "treatments must be torch.float32"),
        (1, lambda a: a.T.contiguous().T.expand(1, 4)[:, [0]].expand(1, 4), "days must be conti"),
        (4, lambda a: a.transpose(1, 2), r"hidden_weight must be .* of shape \(3, 32, 64\)"),
        (6, lambda a: a.mT.contiguous().mT, "out_weight must be contiguous, got strides"),
        (8, lambda a: a.T, r"projection must be .* of shape \(128, 40\)"),
        (3, lambda a: a[:, :15], "multiple of 32 from 32 to 4096, got 30"),
        (3, lambda a: a[:, :0], "from 32 to 4096, got 0"),
        (3, lambda a: a.new_zeros(2, 2064), "from 32 to 4096, got 4128"),
        (9, None, "weights must be the 7 of `pack`, got 6"),
    ],
)
def test_rejects_what_it_would_misread(rng_weights, at, change, message):
    arguments = [*request(2, VISITS), *rng_weights(32, 40)]
    arguments = [a.to(DEVICE) for a in arguments]
    if change is None:
        del arguments[at]
    else:
        arguments[at] = change(arguments[at])
    with pytest.raises(ValueError, match=message):
        conditioning(*arguments[:3], arguments[3:])


def test_packs_no_projection_of_another_width():
    net = network(TINY)
    mlps = [list(m.parameters()) for m in (net.time_embed, net.days_embed, net.treats_embed[1:])]
    with pytest.raises(ValueError, match=r"must be 32 or 128 wide, got \(8, 64\)"):
        pack(net.treats_embed[0].weight, mlps, [(torch.zeros(8, 64), torch.zeros(8))])


EMBED = (
    "t_ptr",
    "days_ptr",
    "treatments_ptr",
    "frequency_ptr",
    "hidden_weight_ptr",
    "hidden_bias_ptr",
    "out_weight_ptr",
    "out_bias_ptr",
    "embedding_ptr",
)
PROJECT = ("embedding_ptr", "projection_ptr", "bias_ptr", "out_ptr")


def variant(kernel: str, name: str, pointers: tuple[str, ...], constants: dict, stages: int):
    types = {**dict.fromkeys(pointers, "*fp32"), "N": "i32"}
    return Variant(
        f"tadiff_kernels.conditioning_triton:{kernel}",
        name,
        types | dict.fromkeys(constants, "constexpr"),
        constants,
        aligned=tuple(range(len(pointers))),
        num_stages=stages,
    )


@pytest.fixture(scope="module")
def compiled():
    """Both kernels as `launch` compiles them, for the published networks and a width of 96."""
    found = []
    for name, mc, p in (("A", 32, 1856), ("C", 64, 3712), ("D", 64, 5824), ("wide", 96, 1248)):
        found.append(variant("_embed", name, EMBED, embed_constants(mc), 3))
        found.append(variant("_project", name, PROJECT, project_constants(mc, p), PROJECT_STAGES))
    return compile_variants(found)


def test_fits_every_gpu(compiled):
    check_against(Path(__file__).parent / "resources" / "conditioning.json", compiled)


def test_compiles_to_no_approximation(compiled):
    for found in compiled:
        assert "fma.rn.f32" in found.ptx
        assert ".approx" not in found.ptx, found.variant
        assert ".tf32" not in found.ptx, found.variant


@pytest.mark.gpu
@pytest.mark.parametrize("n", [50, 1000])
def test_a_replayed_cuda_graph_reads_the_new_request(n):
    net = network(A)
    weights, other = packed(net), request(n, FAR)
    arguments = [a.to(DEVICE) for a in request(n, VISITS)]
    conditioning(*arguments, weights)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = conditioning(*arguments, weights)
    for buffer, values in zip(arguments, other, strict=True):
        buffer.copy_(values)
    graph.replay()
    assert torch.equal(out, conditioning(*arguments, weights))
    defined(net, *other).check(out.cpu())
