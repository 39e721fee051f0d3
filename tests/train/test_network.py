"""The network against recorded outputs of the published one, and against its definition.

The recorded arrays in tests/golden were made by the published code (MIT licence) from weights and
inputs that depend on their names alone; no weights are stored.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tadiff_train.network import NetworkConfig, TaDiffNet, attend, sinusoid, softmax_one

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {
    "A": NetworkConfig(model_channels=32, num_res_blocks=2, num_heads=4),
    "B": NetworkConfig(model_channels=32, num_res_blocks=1, num_heads=1),
    "C": NetworkConfig(model_channels=64, num_res_blocks=2, num_heads=8),
    "D": NetworkConfig(
        model_channels=64, num_res_blocks=2, num_heads=4, channel_mult=(1, 2, 4, 8)
    ),
}
PARAMETERS = {"A": 5_504_119, "B": 3_765_431, "C": 21_956_839, "D": 62_929_447}
KEY_HASHES = {
    "A": "95672afc7600ae836ed572e4a499fc7bde219fc3d826ee7079d18ecf4fbcad35",
    "B": "9ad91a7cd2b9f69fb901f419aca9f6db89aee05d57845c839c1375ee9647f11b",
    "C": "8c992876537992225a037106aee57fce1fb36b97b8009ddd2549a93318adc1f3",
    "D": "dfd82e94b044e7f96b9330e568e730aa89a98ff6439372702be3bb0b9de280b8",
}
RECORDED = {  # mean, std, channel means of item 0, y[0,0,0,0:4], y[1,6,24,20:24]
    "A": (
        (0.102517, 0.336530),
        (0.05487, 0.25711, 0.08650, 0.01453, 0.06308, 0.20627, 0.03330),
        (0.00168, -0.14506, 0.38408, -0.00995),
        (0.05663, 0.53264, 0.22304, 0.57159),
    ),
    "B": (
        (0.102647, 0.346670),
        (0.05281, 0.25630, 0.08891, 0.01764, 0.06521, 0.20630, 0.03366),
        (-0.01835, 0.15977, 0.31327, -0.07548),
        (0.67611, 0.04277, -0.11238, -0.35486),
    ),
    "C": (
        (0.146916, 0.334786),
        (0.36261, 0.22484, 0.06811, 0.07014, 0.21819, 0.06493, -0.05086),
        (0.21301, -0.08010, 0.27598, 0.49797),
        (0.45928, -0.13071, -0.18672, 0.23913),
    ),
    "D": (
        (0.145553, 0.333681),
        (0.35609, 0.22284, 0.06705, 0.07189, 0.21476, 0.06592, -0.05003),
        (0.21819, -0.09755, 0.27656, 0.52639),
        (0.44101, -0.32134, -0.04902, 0.33859),
    ),
}
TOLERANCE = 5e-5  # published fp32 lies 1.2e-5 from float64


def mixed(seed: int, n: int) -> np.ndarray:
    """n numbers in [-1, 1) from a 64-bit mixing function (splitmix64 constants), float64."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1


def named_weights(net: TaDiffNet) -> dict[str, torch.Tensor]:
    weights = {}
    for key, p in net.state_dict().items():
        w = mixed(zlib.crc32(key.encode()), p.numel()).reshape(p.shape)
        if p.ndim >= 2:
            w *= 0.2 if key == "treats_embed.0.weight" else (p.numel() / p.shape[0]) ** -0.5
        elif key.endswith("weight"):
            w = 1 + 0.1 * w
        else:
            w *= 0.05
        weights[key] = torch.from_numpy(w.astype(np.float32))
    return weights


def named_inputs() -> tuple[torch.Tensor, ...]:
    x = mixed(zlib.crc32(b"x"), 2 * 12 * 48 * 48).reshape(2, 12, 48, 48)
    return (
        torch.from_numpy(x.astype(np.float32)),
        torch.tensor([5.0, 600.0]),
        torch.tensor([[0, 30, 60, 90], [10, 41, 56, 133]], dtype=torch.float32),
        torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.float32),
        torch.tensor([3, 1]),
    )


def named_net(name: str, **kwargs) -> TaDiffNet:
    net = TaDiffNet(CONFIGS[name], **kwargs).eval()
    net.load_state_dict(named_weights(net), strict=True)
    return net


@torch.no_grad()
def run(net, x, t, days, treatments, target):
    return net(x, t, days, treatments, target)


@pytest.mark.golden
@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_shapes_are_the_published_ones(name):
    state = TaDiffNet(CONFIGS[name]).state_dict()
    listing = "\n".join(f"{k}|{','.join(map(str, v.shape))}" for k, v in state.items())
    assert hashlib.sha256(listing.encode()).hexdigest() == KEY_HASHES[name]
    assert sum(v.numel() for v in state.values()) == PARAMETERS[name]


@pytest.mark.golden
@pytest.mark.parametrize("name", CONFIGS)
def test_reproduces_the_published_outputs(name):
    y = run(named_net(name), *named_inputs())
    moments, channels, corner, middle = RECORDED[name]
    assert (y.mean().item(), y.std().item()) == pytest.approx(moments, abs=TOLERANCE)
    assert y[0].mean((1, 2)).tolist() == pytest.approx(channels, abs=TOLERANCE)
    assert y[0, 0, 0, :4].tolist() == pytest.approx(corner, abs=TOLERANCE)
    assert y[1, 6, 24, 20:24].tolist() == pytest.approx(middle, abs=TOLERANCE)


def philox(tag: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=key))


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, 1 / fan in) kernels, 1 + 0.1 N gains, 0.1 N biases, from the name alone."""
    z = philox(name).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy((z / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(
        ((1.0 if name.endswith("weight") else 0.0) + 0.1 * z).astype(np.float32)
    )


def filled_inputs(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    r = philox("inputs")
    x = r.standard_normal((batch, 12, size, size)).astype(np.float32)
    t = r.integers(1, 1001, batch).astype(np.float32)
    days = np.sort(r.integers(0, 900, (batch, 4)), axis=1).astype(np.float32)
    treatments = r.integers(0, 4, (batch, 4)).astype(np.float32)
    return tuple(map(torch.from_numpy, (x, t, days, treatments)))


@pytest.mark.golden
@pytest.mark.parametrize("name", ["tadiff_c32_r1_h1", "tadiff_c32_r2_h4"])
def test_reproduces_the_recorded_arrays(name):
    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    recorded = np.load(GOLDEN / f"{name}.npz")
    c = spec["config"]
    config = NetworkConfig(
        model_channels=c["model_channels"],
        channel_mult=c["channel_mult"],
        num_res_blocks=c["num_res_blocks"],
        num_heads=c["num_heads"],
        attention_strides=c["attention_resolutions"],
    )
    net = TaDiffNet(config).eval()
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == spec["state_dict"]
    shapes = {k: tuple(s) for k, s in spec["state_dict"].items()}
    net.load_state_dict({k: filled(k, s) for k, s in shapes.items()}, strict=True)
    target = torch.from_numpy(recorded["i_tg"].astype(np.int64))
    y = run(net, *filled_inputs(spec["batch"], spec["size"]), target)
    assert np.abs(y.numpy() - recorded["y"]).max() <= TOLERANCE


def test_batch_of_one_equals_a_row_of_a_larger_batch():
    """fp32 reassociation only: the published code crashes here."""
    net, inputs = named_net("B"), named_inputs()
    whole = run(net, *inputs)
    for i in range(2):
        alone = run(net, *(a[i : i + 1] for a in inputs))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-5)


def test_one_timestep_serves_the_whole_batch():
    net, (x, _, *rest) = named_net("B"), named_inputs()
    torch.testing.assert_close(
        run(net, x, torch.tensor([7.0]), *rest), run(net, x, torch.tensor([7.0, 7.0]), *rest)
    )


def test_the_last_slot_has_two_names():
    net, (*inputs, _) = named_net("B"), named_inputs()
    by_end, by_index = (run(net, *inputs, torch.tensor([k, k])) for k in (-1, 3))
    assert torch.equal(by_end, by_index)


def test_height_and_width_may_differ():
    """Transposed image and transposed kernels give the transposed output: no axis is confused."""
    net, (x, *rest) = named_net("B"), named_inputs()
    wide = x[:, :, :32, :]
    y = run(net, wide, *rest)
    for p in net.parameters():
        if p.ndim == 4:
            p.data = p.data.transpose(2, 3).contiguous()
    back = run(net, wide.transpose(2, 3), *rest).transpose(2, 3)
    assert y.shape == (2, 7, 32, 48)
    torch.testing.assert_close(back, y, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 100, 144])
def test_attention_in_chunks_is_the_same_attention(chunk):
    net, inputs = named_net("B"), named_inputs()
    torch.testing.assert_close(
        run(named_net("B", query_chunk=chunk), *inputs), run(net, *inputs), rtol=0, atol=1e-5
    )


def test_softmax_one_values():
    """Three equal logits give 1/4 each: plain softmax gives 1/3, "softmax1" e^9 / (1 + 3 e^9)."""
    torch.testing.assert_close(softmax_one(torch.full((3,), 9.0)), torch.full((3,), 0.25))


def test_softmax_one_is_softmax_scaled_by_its_own_maximum():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = torch.softmax(scores, -1)
    expected = p / (1 + p.amax(-1, keepdim=True))
    torch.testing.assert_close(softmax_one(scores), expected)


def test_attend_against_loops():
    rng = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 2, 4, 6, generator=rng, dtype=torch.float32).unbind()
    expected = torch.zeros_like(v)
    for n in range(2):
        for i in range(6):
            s = [float(q[n, :, i] @ k[n, :, j]) / math.sqrt(4) for j in range(6)]
            e = [math.exp(a - max(s)) for a in s]
            for j in range(6):
                expected[n, :, i] += e[j] / (1 + sum(e)) * v[n, :, j]
    torch.testing.assert_close(attend(q, k, v), expected)


def test_sinusoid_has_cosines_first():
    e = sinusoid(torch.tensor([600.0]), 32)[0]
    assert e[:3].tolist() == pytest.approx([-0.999023, -0.311171, 0.323751], abs=1e-5)
    assert e[16:19].tolist() == pytest.approx([0.044182, -0.950354, 0.946142], abs=1e-5)


@pytest.mark.parametrize(
    "change", ["t", "day", "treatment", "source day", "source treatment", "target"]
)
def test_every_condition_reaches_the_output(change):
    net = named_net("B")
    x, t, days, treatments, target = (a[:1].clone() for a in named_inputs())
    before = run(net, x, t, days, treatments, target)
    if change == "t":
        t += 1
    elif change.endswith("day"):
        days[0, 0 if "source" in change else 3] += 7
    elif change.endswith("treatment"):
        treatments[0, 0 if "source" in change else 3] += 1
    else:
        target -= 1
    assert (run(net, x, t, days, treatments, target) - before).abs().max() > 1e-3


def test_embeddings_stay_in_fp32_under_autocast():
    net = named_net("B")
    _, *condition = named_inputs()
    expected = net.embed(*condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, exact in zip(net.embed(*condition), expected, strict=True):
            assert torch.equal(got, exact)


def test_exports_without_patches():
    net, inputs = named_net("B"), named_inputs()
    exported = torch.export.export(net, inputs).module()
    torch.testing.assert_close(exported(*inputs), run(net, *inputs), rtol=0, atol=1e-5)


def test_a_new_network_predicts_zero():
    assert not run(TaDiffNet(CONFIGS["B"]), *named_inputs()).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_channels": 40}, "multiple of the 32 norm groups"),
        ({"num_heads": 5}, "num_heads=5 does not divide the 96 channels of level 2"),
        ({"channel_mult": ()}, "at least one level"),
        ({"heads": 4}, "heads"),
    ],
)
def test_config_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**wrong)
