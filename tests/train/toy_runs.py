"""A toy cohort and settings that train in milliseconds."""

import dataclasses

import numpy as np

from tadiff_rt.card import ModelCard
from tadiff_rt.preprocess import DataContract
from tadiff_train.data import CachedCase
from tadiff_train.fit import FitConfig, Machine, fit
from tadiff_train.network import NetworkConfig, TaDiffNet

NETWORK = NetworkConfig(num_res_blocks=1, num_heads=1, channel_mult=(1,), attention_strides=())
CARD = ModelCard(name="toy", trained_on="discs", data=DataContract(size=16, spacing_mm=2.0))
SHORT = FitConfig(steps=4, batch_size=2, warmup_steps=2, start="published", picture_every=0)
"""The last layer starts at zero: an untrained network answers 0."""
HERE = Machine(device="cpu", quiet=True)


def discs(seed: int, sessions: int = 4) -> CachedCase:
    """Three slices of 16 x 16 with a disc of tumour that grows from session to session."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    radius = np.arange(sessions)[:, None, None] + rng.uniform(2, 3, (3, 1, 1, 1))
    masks = (y - 8) ** 2 + (x - rng.uniform(6, 10)) ** 2 < radius**2
    level = np.array([0.3, 0.5, 0.4])[:, None, None]
    images = level + masks[:, :, None] * np.array([0.1, 0.4, 0.3])[:, None, None]
    days = tuple(40 * s for s in range(sessions))
    return CachedCase(f"sub-{seed}", days, (0, 0, 1, 1)[:sessions], np.float16(images), masks)


def train(cases, out, *, report=None, card=CARD, machine=HERE, **changes) -> TaDiffNet:
    """`fit` with settings that differ from SHORT; some of its own keywords are passed on."""
    passed = {k: changes.pop(k) for k in ("resume", "validation") if k in changes}
    config = dataclasses.replace(SHORT, **changes)
    return fit(cases, NETWORK, card, config, out, report, machine=machine, **passed)


def same_weights(a: TaDiffNet, b: TaDiffNet) -> bool:
    """To the bit."""
    import torch

    other = b.state_dict()
    return all(torch.equal(value, other[key]) for key, value in a.state_dict().items())
