"""Initial weights that pass the noise through: closed forms in float64."""

import numpy as np
import pytest
import torch

from tadiff_train.network import NetworkConfig, TaDiffNet
from tadiff_train.start import SHARE, pass_noise_through

GROUPS = 32


def started(width: int) -> TaDiffNet:
    torch.manual_seed(0)
    net = TaDiffNet(
        NetworkConfig(
            model_channels=width,
            num_res_blocks=1,
            num_heads=1,
            channel_mult=(1,),
            attention_strides=(),
        )
    )
    pass_noise_through(net)
    return net


def inputs(seed: int, shift: float = 0.0):
    rng = np.random.default_rng(seed)
    images = rng.random((2, 12, 16, 16))
    images[:, 9:] = rng.standard_normal((2, 3, 16, 16)) + shift
    days = torch.tensor([[0.0, 30, 60, 90]]).repeat(2, 1)
    t = torch.tensor([500.0, 900.0])
    return torch.from_numpy(images).float(), t, days, days * 0, torch.tensor([3, 3])


def of_noise(net: TaDiffNet, arguments) -> np.ndarray:
    with torch.no_grad():
        return net(*arguments)[:, 4:].numpy()


def expected(x: np.ndarray, width: int) -> np.ndarray:
    """(x_t - 0.7 x_last), each channel over its group's deviation from its group's mean.

    The head is norm, SiLU, 3 x 3 convolution. A pair of channels c and -c enters, so that
    silu(a) - silu(-a) = a returns the first of them; width / 32 channels make a group.
    """
    difference = x[:, 9:] - SHARE * x[:, 6:9]
    out = np.empty_like(difference)
    for b, m in np.ndindex(2, 3):
        d = difference[b, m]
        if width // GROUPS == 1:  # each channel is a group of its own
            out[b, m] = (d - d.mean()) / np.sqrt(d.var() + 1e-5)
        else:  # both of a pair: their mean is 0, their variance that of d around 0
            out[b, m] = d / np.sqrt((d**2).mean() + 1e-5)
    return out


@pytest.mark.parametrize("width", [32, 64])
def test_the_start_returns_the_normalised_difference(width):
    arguments = inputs(1, shift=0.4)
    got = of_noise(started(width), arguments)
    np.testing.assert_allclose(
        got, expected(arguments[0].double().numpy(), width), rtol=1e-4, atol=2e-5
    )


def test_the_mean_passes_with_two_channels_a_group_and_not_with_one():
    arguments = inputs(2, shift=0.8)
    mean = {width: of_noise(started(width), arguments).mean((2, 3)) for width in (32, 64)}
    np.testing.assert_allclose(mean[32], 0, atol=1e-5)
    assert (mean[64] > 0.2).all()


def test_masks_start_as_unknown_and_other_sources_are_not_seen():
    net, arguments = started(64), inputs(3)
    with torch.no_grad():
        before = net(*arguments)
        images = arguments[0].clone()
        images[:, :6] = 0.5  # the two earlier sessions
        after = net(images, *arguments[1:])
    assert not before[:, :4].any()
    torch.testing.assert_close(after[:, 4:], before[:, 4:], rtol=1e-5, atol=1e-5)
