"""The whole fused network through its kernels: what one kernel leaves is what the next expects.

Without a GPU the kernels run in Triton's interpreter, put in the place of the plain PyTorch that
the operators are on a CPU.
"""

import pytest
import torch

from tadiff_export.certify.measure import BUDGETS, allowed, errors
from tadiff_export.fuse import fuse, fuse_conditioner
from tadiff_export.split import split
from tadiff_kernels import attention as attention_op
from tadiff_kernels import conditioning as conditioning_op
from tadiff_kernels import group_norm_silu as norm_op
from tadiff_kernels.attention_triton import launch as attention
from tadiff_kernels.conditioning_triton import launch as conditioning
from tadiff_kernels.group_norm_silu_triton import launch as group_norm_silu
from tadiff_train.network import NetworkConfig, TaDiffNet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 16
CONFIG = NetworkConfig(channel_mult=(1, 2), num_res_blocks=1, num_heads=2, attention_strides=(2,))
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def net():
    """Random weights, nowhere zero, at a scale at which activations neither grow nor fade."""
    rng = torch.Generator().manual_seed(5)
    net = TaDiffNet(CONFIG).eval()
    for p in net.parameters():
        noise = torch.randn(p.shape, generator=rng)
        p.data = noise / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else p.data + 0.1 * noise
    return net


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels that ran."""
    seen = []
    if DEVICE == "cuda":
        return seen

    def norm(x, skip, shift, weight, bias, num_groups, eps, silu):
        seen.append("group_norm_silu")
        y = norm_op._empty_result(x, skip)
        group_norm_silu(x, skip, shift, weight, bias, num_groups, eps, silu, y)
        return y

    def attend(qkv, num_heads):
        seen.append("attention")
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        attention(qkv, num_heads, out)
        return out

    def condition(t, days, treatments, weights):
        seen.append("conditioning")
        return conditioning(t, days, treatments, weights)

    monkeypatch.setattr(norm_op, "group_norm_silu_reference", norm)
    monkeypatch.setattr(attention_op, "attention_by_chunks", attend)
    monkeypatch.setattr(conditioning_op, "conditioning_reference", condition)
    return seen


def feed(net, rows):
    rng = torch.Generator().manual_seed(rows)
    t = torch.tensor([400.0])
    days, treatments = torch.tensor([[0.0, 50, 90, 300]]), torch.tensor([[0.0, 1, 2, 3]])
    images = torch.randn(rows, 12, SIZE, SIZE, generator=rng)
    return (t, days, treatments), (images[:, :9].contiguous(), images[:, 9:].contiguous())


def outputs(eps, logits):
    return {name: a.double().cpu().numpy() for name, a in (("eps", eps), ("mask_logits", logits))}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.slow
def test_kernels_compute_the_network(net, calls, precision, rows):
    conditions, images = feed(net, rows)
    conditioner, denoiser = split(net)
    with torch.no_grad():
        own = outputs(*denoiser(*images, conditioner(*conditions)))
        exact_net = split(TaDiffNet(CONFIG).eval().double())
        exact_net[0].net.load_state_dict(net.state_dict())
        exact = outputs(*exact_net[1](*(a.double() for a in images), conditioner(*conditions)))
        shifts = fuse_conditioner(net).to(DEVICE)(*(a.to(DEVICE) for a in conditions))
        fused = fuse(net, DTYPES[precision]).to(DEVICE)
        got = outputs(*fused(*(a.to(DEVICE) for a in images), shifts))
    limits = allowed(BUDGETS[precision], exact, errors(own, exact))
    for name, error in errors(got, exact).items():
        assert error <= limits[name], (name, error, limits[name])
    if DEVICE == "cpu":
        assert {n: calls.count(n) for n in calls} == {
            "conditioning": 1,
            "group_norm_silu": 21,
            "attention": 4,
        }
