"""The fused network: what it computes, in which types and layouts, in how many operators."""

import io

import pytest
import torch

from tadiff_export.certify.measure import BUDGETS, allowed, errors
from tadiff_export.fuse import FusedConv, FusedResBlock, fuse, fuse_conditioner
from tadiff_export.split import split
from tadiff_export.torch_package import conditioner_to_program, denoiser_to_program
from tadiff_rt.pt2_scan import scan_program
from tadiff_train.network import GroupNorm32, NetworkConfig
from tests.train.test_network import named_inputs, named_net

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def golden_feed(net):
    """Sources, target and shifts of the recorded input whose target is the last session."""
    x, t, days, treatments, _ = named_inputs()
    conditioner, _ = split(net)
    with torch.no_grad():
        shifts = conditioner(t[:1], days[:1], treatments[:1])
    return x[:1, :9], x[:1, 9:], shifts


def outputs(module, feed):
    with torch.no_grad():
        eps, logits = module(*feed)
    return {"eps": eps.double().numpy(), "mask_logits": logits.double().numpy()}


def exact_outputs(net, feed):
    return outputs(split(net)[1].double(), [a.double() for a in feed])


@pytest.fixture(params=["A", "B", pytest.param("C", marks=pytest.mark.slow)])
def net(request):
    return named_net(request.param)


@pytest.mark.golden
@pytest.mark.parametrize("precision", DTYPES)
def test_equals_the_published_network_within_its_budget(net, precision):
    feed = golden_feed(net)
    own_net = outputs(split(net)[1], feed)
    fused = outputs(fuse(net, DTYPES[precision]), feed)
    exact = exact_outputs(net, feed)
    limits = allowed(BUDGETS[precision], exact, errors(own_net, exact))
    for name, error in errors(fused, exact).items():
        assert error <= limits[name], (name, error, limits[name])


@pytest.mark.golden
def test_the_ends_in_fp32_come_nearer(net):
    feed = golden_feed(net)
    exact = exact_outputs(net.float(), feed)
    net.float()
    half = errors(outputs(fuse(net, torch.float16), feed), exact)
    mixed = errors(outputs(fuse(net, torch.float16, ends_fp32=True), feed), exact)
    assert mixed["eps_l2"] < half["eps_l2"]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_the_conditioner_is_the_published_one(name):
    net = named_net(name)
    t = torch.tensor([1.0, 17.5, 600.0, 1000.0])
    days, treatments = torch.tensor([[0.0, 41, 56, 1133]]), torch.tensor([[3.0, 0, 0, 1]])
    with torch.no_grad():
        got = fuse_conditioner(net)(t, days, treatments)
        expected = split(net)[0](t, days, treatments)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("levels", [(1, 2), (1, 1), (1, 2, 4)])
def test_any_number_of_rows_and_levels(rows, levels):
    """Levels of one width have no skip convolution in the encoder."""
    torch.manual_seed(3)
    config = NetworkConfig(
        channel_mult=levels, num_res_blocks=2, num_heads=2, attention_strides=(2,)
    )
    net = split_net(config)
    rng = torch.Generator().manual_seed(rows)
    widths = sum(block.channels_out for block in net.residual_blocks())
    shapes = [(rows, 9, 24, 16), (rows, 3, 24, 16), (1, widths)]
    feed = [torch.randn(shape, generator=rng) for shape in shapes]
    for got, expected in zip(
        outputs(fuse(net, torch.float32), feed).values(),
        outputs(split(net)[1], feed).values(),
        strict=True,
    ):
        torch.testing.assert_close(
            torch.from_numpy(got), torch.from_numpy(expected), rtol=0, atol=2e-5
        )


def split_net(config):
    """A network whose weights are nowhere zero."""
    from tadiff_train.network import TaDiffNet

    net = TaDiffNet(config)
    for p in net.parameters():
        fan_in = max(p[0].numel(), 1) if p.ndim > 1 else 1
        p.data = torch.randn(p.shape) / fan_in**0.5 if p.ndim > 1 else p.data + 0.1
    return net.eval()


def test_the_network_is_left_as_it_was():
    net = named_net("B")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fused = fuse(net, torch.float32)
    with torch.no_grad():
        for p in fused.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolutions_read_half_precision_in_the_layout_of_tensor_cores(dtype):
    net = named_net("B")
    fused = fuse(net, dtype)
    seen = []

    def look(module, args, result):
        weight = module.weight
        seen.append((module.missing, weight.dtype, result.dtype, weight.shape[1] % 8))
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert result.is_contiguous(memory_format=torch.channels_last)

    for module in fused.modules():
        if isinstance(module, FusedConv):
            module.register_forward_hook(look)
    outputs(fused, golden_feed(net))
    assert {entry[1:] for entry in seen} == {(dtype, dtype, 0)}
    assert [missing for missing, *_ in seen if missing] == [4]  # 12 channels to 16, at the input


def test_statistics_and_shifts_stay_in_fp32():
    fused = fuse(named_net("B"), torch.float16)
    assert fused.biases.dtype == torch.float32
    for name, p in fused.named_parameters():
        if "norm" in name:
            assert p.dtype == torch.float32, name


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_a_program_has_an_operator_a_norm_and_writes_no_concatenation(dtype):
    net = named_net("A")
    file = "p.pt2"
    counts = scan_program(denoiser_to_program(fuse(net, dtype), 48), file).operators
    norms = sum(isinstance(m, GroupNorm32) for m in net.modules())
    assert counts["group_norm_silu"] == norms
    assert counts["attention"] == 11
    assert counts["cat"] == 1  # of the inputs
    assert counts["addmm"] == len(net.output_blocks)
    assert scan_program(conditioner_to_program(fuse_conditioner(net)), file).operators == {
        "conditioning": 1
    }


def test_programs_serve_any_number_of_rows():
    net = named_net("B")
    fused = fuse(net, torch.float32)
    module = torch.export.load(io.BytesIO(denoiser_to_program(fused, 48))).module()
    sources, x, shifts = golden_feed(net)
    for rows in (1, 2, 5):
        feed = (sources.expand(rows, -1, -1, -1), x.expand(rows, -1, -1, -1), shifts)
        with torch.no_grad():
            got, expected = module(*feed), fused(*feed)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_biases_before_a_norm_are_added_once():
    """The first convolution of a block has none of its own: the shift holds it."""
    fused = fuse(named_net("B"), torch.float32)
    blocks = [m for m in fused.modules() if isinstance(m, FusedResBlock)]
    assert all(b.conv_in.bias is None and b.conv_out.bias is None for b in blocks)
