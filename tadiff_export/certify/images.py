"""Wrong ways to feed the network and to read its output, each with a name."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadiff_export.certify.probes import NUM_SOURCES
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS

MODALITIES = ("T1", "T1c", "FLAIR")


@dataclass(frozen=True, eq=False)
class Images:
    """One evaluation of the denoiser: inputs, then outputs."""

    sources: Tensor
    """(b, 9, h, w)"""
    x: Tensor
    """(b, 3, h, w)"""


@dataclass(frozen=True, eq=False)
class Result:
    """What the denoiser returns."""

    eps: Tensor
    mask_logits: Tensor


@dataclass(frozen=True, eq=False)
class Level:
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class ImageFault:
    """A way to feed the network or read it; `name` completes "the artefact has"."""

    name: str
    feed: Callable[[Images], Images] = lambda images: images
    read: Callable[[Result, Images, Level], Result] = lambda result, images, level: result


def image_faults() -> Iterator[ImageFault]:
    """Of sessions and modalities, of geometry, of values, then of the outputs."""
    yield from _of_order()
    yield from _of_geometry()
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        yield ImageFault(
            f"images rounded to {name} precision",
            lambda i, d=dtype: Images(i.sources.to(d).float(), i.x.to(d).float()),
        )
    yield ImageFault("images scaled to -1 ... 1", lambda i: replace(i, sources=2 * i.sources - 1))
    yield from _of_outputs()


def _of_order() -> Iterator[ImageFault]:
    every = range(NUM_SESSIONS - 1)
    for order in itertools.permutations(every):
        if order != tuple(every):
            channels = [NUM_MODALITIES * s + m for s in order for m in range(NUM_MODALITIES)]
            yield ImageFault(
                f"sessions swapped: sources in the order {', '.join(str(s + 1) for s in order)}",
                lambda i, c=channels: replace(i, sources=i.sources[:, c]),
            )
    yield ImageFault("the noisy target in slot 0, the sources after it", _target_first)
    mixed = [NUM_MODALITIES * s + m for m in range(NUM_MODALITIES) for s in every]
    yield ImageFault("modality-major channels", lambda i: replace(i, sources=i.sources[:, mixed]))
    for order in itertools.permutations(range(NUM_MODALITIES)):
        if order == tuple(range(NUM_MODALITIES)):
            continue
        back = [order.index(m) for m in range(NUM_MODALITIES)]
        name = f"modalities in the order {', '.join(MODALITIES[m] for m in order)}"
        moved = [m for m in range(NUM_MODALITIES) if order[m] != m]
        if len(moved) == 2:
            name = f"{MODALITIES[moved[0]]} and {MODALITIES[moved[1]]} swapped"
        channels = [NUM_MODALITIES * s + m for s in every for m in order]
        yield ImageFault(
            f"{name} in the sources", lambda i, c=channels: replace(i, sources=i.sources[:, c])
        )
        yield ImageFault(
            f"{name} in the noise", read=lambda r, i, level, o=order: replace(r, eps=r.eps[:, o])
        )
        yield ImageFault(
            f"{name} throughout",
            lambda i, c=channels, o=order: Images(i.sources[:, c], i.x[:, o]),
            lambda r, i, level, b=back: replace(r, eps=r.eps[:, b]),
        )


def _target_first(images: Images) -> Images:
    every = torch.cat([images.x, images.sources], dim=1)
    return Images(every[:, :NUM_SOURCES], every[:, NUM_SOURCES:])


def _of_geometry() -> Iterator[ImageFault]:
    moves: dict[str, Callable[[Tensor], Tensor]] = {
        "transposed": lambda a: a.transpose(2, 3),
        "upside down": lambda a: a.flip(2),
        "mirrored": lambda a: a.flip(3),
    }
    for name, move in moves.items():
        yield ImageFault(
            f"source images {name}", lambda i, f=move: replace(i, sources=f(i.sources))
        )
        yield ImageFault(f"noisy image {name}", lambda i, f=move: replace(i, x=f(i.x)))
        yield ImageFault(
            f"every image {name}, and back after the network",
            lambda i, f=move: Images(f(i.sources), f(i.x)),
            lambda r, i, level, f=move: Result(f(r.eps), f(r.mask_logits)),
        )
        yield ImageFault(
            f"outputs {name}",
            read=lambda r, i, level, f=move: Result(f(r.eps), f(r.mask_logits)),
        )


def _of_outputs() -> Iterator[ImageFault]:
    for step in range(1, NUM_SESSIONS):
        yield ImageFault(
            f"mask channels rotated by {step}",
            read=lambda r, i, level, n=step: replace(r, mask_logits=r.mask_logits.roll(n, 1)),
        )
    yield ImageFault(
        "mask channels in reverse",
        read=lambda r, i, level: replace(r, mask_logits=r.mask_logits.flip(1)),
    )
    yield ImageFault(
        "mask probabilities instead of logits",
        read=lambda r, i, level: replace(r, mask_logits=r.mask_logits.sigmoid()),
    )
    yield ImageFault(
        "the sign of the noise reversed", read=lambda r, i, level: replace(r, eps=-r.eps)
    )
    yield ImageFault(
        "x0 instead of noise",
        read=lambda r, i, level: replace(r, eps=(i.x - level.sigma * r.eps) / level.alpha),
    )
    yield ImageFault(
        "v instead of noise",
        read=lambda r, i, level: replace(r, eps=(r.eps - level.sigma * i.x) / level.alpha),
    )
    yield ImageFault(
        "the noise taken for the first channels of the output",
        read=lambda r, i, level: _cut(torch.cat([r.mask_logits, r.eps], dim=1)),
    )


def _cut(y: Tensor) -> Result:
    return Result(y[:, :NUM_MODALITIES], y[:, NUM_MODALITIES:])
