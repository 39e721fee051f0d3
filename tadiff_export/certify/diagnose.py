"""Which known fault an artefact computes: each is tried for giving what the artefact gives."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tadiff_export.certify.conditions import Condition, condition_faults
from tadiff_export.certify.images import Images, Level, Result, image_faults
from tadiff_export.certify.layers import layer_faults
from tadiff_export.certify.probes import alpha_of, sigma_of
from tadiff_export.certify.symptoms import (
    CLEARLY,
    CONDITION_LIMIT,
    Symptoms,
    apart,
    condition_of,
    shifts_of,
    unet,
)
from tadiff_export.certify.variants import Edit, variants
from tadiff_export.split import Denoiser
from tadiff_rt.card import ModelCard
from tadiff_train.network import TaDiffNet

ALIKE = 1.5
"""Hypotheses that leave up to so many times as much as the best are named with it."""

DECISIVE = 0.01
"""A hypothesis that leaves so little, and no more than is allowed, ends the search."""

Tried = Iterator[tuple[str, Sequence[Tensor]]]
"""Name of a hypothesis, and what it computes."""


def conditioner_faults(net: TaDiffNet, symptoms: Symptoms) -> list[str]:
    """What the conditioner does wrong, in sentences; empty where its shifts are right."""
    if symptoms.condition is None:
        return []
    got, truth = symptoms.shifts, shifts_of(net, symptoms.condition)
    found = _named(
        "the conditioner has",
        ((name, [shifts]) for name, shifts in _conditioned(net, symptoms.condition)),
        [got],
        apart([got], [truth]),
        CONDITION_LIMIT,
    )
    return found or _blocks(net, got, truth) or ["the shifts of the conditioner are wrong"]


def denoiser_faults(
    net: TaDiffNet, card: ModelCard, symptoms: Symptoms, limit: float, *, layer_by_layer: bool
) -> list[str]:
    """What the denoiser does wrong, in sentences; empty where it is right or
    nothing fits.

    Cost: about 80 evaluations of one image in fp32, and for a search in single layers as many as
    there are parameters.

    Args:
        limit: relative root mean square error of an output that is no fault.
        layer_by_layer: whether to go on with faults of single layers if no other fits.
    """
    if symptoms.rows or symptoms.error <= limit:
        # Rows that are mixed up say nothing of the network that computed them.
        return list(symptoms.rows)
    probe = symptoms.probe
    images = Images(torch.tensor(probe.sources[:1]), torch.tensor(probe.x[:1]))
    shifts = shifts_of(net, condition_of(probe))
    schedule = card.schedule.build()
    level = Level(alpha_of(schedule, probe.t), sigma_of(schedule, probe.t))
    intro = "the artefact computes what the checkpoint does with"

    def kinds() -> Tried:
        if not symptoms.shifts_are_known:
            for name, other in _conditioned(net, condition_of(probe)):
                yield name, _outputs(unet(net, images, other))
        for fault in image_faults():
            result = unet(net, fault.feed(images), shifts)
            yield fault.name, _outputs(fault.read(result, images, level))
        for variant in variants(net):
            yield variant.name, _outputs(unet(_edited(net, variant.edit), images, shifts))

    if not np.isfinite(symptoms.error):
        return _not_finite(intro, kinds(), symptoms.got)
    found = _named(intro, kinds(), symptoms.got, symptoms.error, limit)
    if found or not layer_by_layer:
        return found
    return _named(intro, _layers(net, images, shifts), symptoms.got, symptoms.error, limit)


def _conditioned(net: TaDiffNet, asked: Condition) -> Iterator[tuple[str, Tensor]]:
    for fault in condition_faults(net):
        changed, edit = fault.change(asked), fault.edit
        other = net
        if edit is not None:
            other = copy.deepcopy(net)
            edit(other, changed)
        yield fault.name, shifts_of(other, changed)


def _layers(net: TaDiffNet, images: Images, shifts: Tensor) -> Tried:
    denoiser = Denoiser(net)
    for fault in layer_faults(net, shifts):
        changed = {f"net.{name}": tensor for name, tensor in fault.parameters.items()}
        with torch.no_grad():
            args = (images.sources, images.x, fault.shifts)
            yield fault.name, functional_call(denoiser, changed, args)


def _not_finite(intro: str, tried: Tried, got: Sequence[Tensor]) -> list[str]:
    """A sentence on the hypotheses that give NaN or infinity in the very same places."""
    gaps = [output.isfinite() for output in got]
    same = [
        name
        for name, outputs in tried
        if all(torch.equal(o.isfinite(), gap) for o, gap in zip(outputs, gaps, strict=True))
    ]
    return [f"{intro} {', or '.join(same)} (not finite in the same places)"] if same else []


def _outputs(result: Result) -> list[Tensor]:
    return [result.eps, result.mask_logits]


def _edited(net: TaDiffNet, edit: Edit) -> TaDiffNet:
    other = copy.deepcopy(net)
    edit(other)
    return other


def _blocks(net: TaDiffNet, got: Tensor, truth: Tensor) -> list[str]:
    """Which blocks have wrong shifts; empty where none has right ones."""
    widths = [block.channels_out for block in net.residual_blocks()]
    mine, right = got.split(widths, dim=1), truth.split(widths, dim=1)

    def same(k: int, j: int) -> bool:
        return widths[k] == widths[j] and apart([mine[k]], [right[j]]) <= CONDITION_LIMIT

    every = range(len(widths))
    wrong = [k for k in every if not same(k, k)]
    if len(wrong) == len(widths):
        return []
    sentences = []
    for k in wrong:
        owner = next((j for j in every if same(k, j)), None)
        what = "others" if owner is None else f"those of block {owner}: shifts exchanged"
        if not mine[k].any():
            what = "all zero: shifts dropped"
        sentences.append(f"the shifts of residual block {k} are {what}")
    return sentences


def _named(
    intro: str, tried: Tried, got: Sequence[Tensor], error: float, limit: float
) -> list[str]:
    """A sentence on the hypotheses that are clearly nearer to the artefact than the truth is."""
    near: list[tuple[float, str]] = []
    for name, outputs in tried:
        rest = apart(got, outputs)
        if rest <= CLEARLY * error:
            near.append((rest, name))
        if rest <= min(limit, DECISIVE * error):
            break
    near.sort()
    if not near:
        return []
    best = [name for rest, name in near if rest <= max(ALIKE * near[0][0], limit)]
    return [
        f"{intro} {', or '.join(best)} (difference {near[0][0]:.1e}, from the truth {error:.1e})"
    ]
