"""Initial weights that already return most of the noise they are shown."""

import torch

from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

SHARE = 0.7
"""Of the last source, taken from x_t: between sqrt(alpha_bar) at high noise and at low."""


@torch.no_grad()
def pass_noise_through(net: TaDiffNet) -> None:
    """Sets first and last layers so that eps = x_t - 0.7 x_last, normalised, at the start.

    The noise is (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar), and the last source is the best
    guess of x_0 there is before training. At high noise an error of eps is magnified by
    sqrt(1 - alpha_bar) / sqrt(alpha_bar) in the image; the published start, a last layer of zeros,
    spends thousands of steps on learning to copy.

    The difference and its negative take two of the first channels for each modality; the last skip
    and the last convolution return them, since silu(a) - silu(-a) = a. Where both share a norm
    group their mean is 0 and the mean of x_t passes too; with one channel a group it is lost. The
    target is expected in the last slot. Other weights stay as drawn.
    """
    first, last, head = net.input_blocks[0][0], net.output_blocks[-1][0], net.out[2]
    width = net.config.model_channels * net.config.channel_mult[0]
    skip = last.skip_connection
    for m in range(NUM_MODALITIES):
        target = NUM_MODALITIES * (NUM_SESSIONS - 1) + m
        for k, sign in enumerate((1.0, -1.0)):
            c = 2 * m + k
            first.weight[c] = 0
            first.bias[c] = 0
            first.weight[c, target, 1, 1] = sign
            first.weight[c, target - NUM_MODALITIES, 1, 1] = -sign * SHARE
            skip.weight[c] = 0
            skip.bias[c] = 0
            skip.weight[c, skip.in_channels - width + c] = 1
            head.weight[NUM_SESSIONS + m, c, 1, 1] = sign
