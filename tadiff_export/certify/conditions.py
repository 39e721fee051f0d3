"""Wrong ways to condition the network: days, treatments, times, embeddings; each with a name."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tadiff_export.certify.variants import (
    drop_bias,
    name_of,
    replaced,
)
from tadiff_export.split import TARGET_SLOT
from tadiff_train.network import NUM_SESSIONS, TaDiffNet


@dataclass(frozen=True, eq=False)
class Condition:
    """What the embeddings see."""

    t: Tensor
    """(n,)"""
    days: Tensor
    """(1, 4)"""
    treatments: Tensor
    """(1, 4)"""
    target: int = TARGET_SLOT


@dataclass(frozen=True)
class ConditionFault:
    """A way to get the shifts wrong; `name` completes "the conditioner has"."""

    name: str
    change: Callable[[Condition], Condition] = lambda condition: condition
    edit: Callable[[TaDiffNet, Condition], None] | None = None
    """Changes a copy of the network in place."""


def condition_faults(net: TaDiffNet) -> Iterator[ConditionFault]:
    """Of the request, then of the embeddings, then of single layers."""
    yield from _of_time_and_days()
    yield from _of_treatments_and_sessions()
    yield from _of_embeddings()
    names = [n for n, _ in net.named_modules() if "_embed" in n or "emb_layers" in n]
    for name in names:
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Linear):
            yield ConditionFault(
                f"the bias of {name} dropped",
                edit=lambda n, c, name=name: drop_bias(n.get_submodule(name)),
            )


def _of_time_and_days() -> Iterator[ConditionFault]:
    yield ConditionFault("timesteps counted from 0", lambda c: replace(c, t=c.t - 1))
    yield ConditionFault("timesteps counted from 2", lambda c: replace(c, t=c.t + 1))
    yield ConditionFault("timesteps rounded down", lambda c: replace(c, t=c.t.floor()))
    yield ConditionFault("timesteps as shares of 1000", lambda c: replace(c, t=c.t / 1000))
    yield ConditionFault("timesteps in reverse order", lambda c: replace(c, t=c.t.flip(0)))
    for unit, length in (("weeks", 7.0), ("months", 30.0), ("years", 365.0)):
        yield ConditionFault(
            f"days given as {unit}", lambda c, n=length: replace(c, days=c.days / n)
        )
    zero = torch.zeros(1, 1)
    yield ConditionFault(
        "days since the previous session instead of the first",
        lambda c: replace(c, days=torch.diff(c.days, prepend=zero)),
    )
    yield ConditionFault(
        "days since the previous session instead of the first, the first of the four 0",
        lambda c: replace(c, days=torch.diff(c.days, prepend=c.days[:, :1])),
    )
    yield ConditionFault(
        "days since the earliest source instead of the first session",
        lambda c: replace(c, days=c.days - c.days[:, :1]),
    )
    yield ConditionFault("days ignored", lambda c: replace(c, days=0 * c.days))


def _of_treatments_and_sessions() -> Iterator[ConditionFault]:
    for step in (1, -1):
        yield ConditionFault(
            f"treatment codes shifted by one ({step:+d})",
            lambda c, step=step: replace(c, treatments=c.treatments + step),
        )
    yield ConditionFault(
        "treatments not multiplied by 10",
        lambda c: replace(c, treatments=(c.treatments + 1) / 10 - 1),
    )
    yield ConditionFault("treatments ignored", lambda c: replace(c, treatments=0 * c.treatments))
    back = [2, 1, 0, 3]
    yield ConditionFault(
        "source days and treatments in reverse",
        lambda c: replace(c, days=c.days[:, back], treatments=c.treatments[:, back]),
    )
    yield ConditionFault("source days in reverse", lambda c: replace(c, days=c.days[:, back]))
    yield ConditionFault(
        "source treatments in reverse", lambda c: replace(c, treatments=c.treatments[:, back])
    )
    yield ConditionFault(
        "days and treatments exchanged",
        lambda c: replace(c, days=c.treatments, treatments=c.days),
    )
    for slot in range(NUM_SESSIONS - 1):
        yield ConditionFault(
            f"target slot {slot} instead of {TARGET_SLOT}",
            lambda c, slot=slot: replace(c, target=slot),
        )


def _of_embeddings() -> Iterator[ConditionFault]:
    parts = {
        "time": ("time_embed", 0),
        "days": ("days_embed", 0),
        "treatments": ("treats_embed", 1),
    }
    for chosen in (tuple(parts), ("time", "days"), *((part,) for part in parts)):
        places = [parts[part] for part in chosen]
        yield ConditionFault(
            f"cosine and sine swapped in the embedding of {' and '.join(chosen)}",
            edit=lambda net, c, places=places: _swap_halves(net, places),
        )
    switches = (True, False)
    for dtype, angles, features in itertools.product(
        (torch.float16, torch.bfloat16), switches, switches
    ):
        what = "embeddings" if angles else "frequencies of the embeddings"
        yield ConditionFault(
            f"{what} in half precision ({name_of(dtype)}{', treatments too' * features})",
            edit=lambda net, c, d=dtype, a=angles, f=features: _halve(
                net, c, d, angles=a, features=f
            ),
        )
    for name, module in (("GELU", nn.GELU()), ("ReLU", nn.ReLU())):
        yield ConditionFault(
            f"SiLU replaced by {name} in the embeddings",
            edit=lambda net, c, module=module: replaced(nn.SiLU, lambda _: module)(net),
        )


def _swap_halves(net: TaDiffNet, places: list[tuple[str, int]]) -> None:
    for name, index in places:
        layer = net.get_submodule(f"{name}.{index}")
        layer.weight.data = torch.cat(layer.weight.data.chunk(2, dim=1)[::-1], dim=1)


def _halve(
    net: TaDiffNet, condition: Condition, dtype: torch.dtype, *, angles: bool, features: bool
) -> None:
    """Sinusoids in half precision: the embedding networks are handed others."""
    width = net.config.model_channels
    layers: list[tuple[nn.Module, Tensor]] = [
        (net.time_embed, _sinusoid(condition.t, width, dtype, angles=angles)),
        (net.days_embed, _sinusoid(condition.days, width, dtype, angles=angles)),
    ]
    if features:
        weight = net.treats_embed[0].weight
        other = _features(condition.treatments, weight, dtype, angles=angles)
        layers.append((net.treats_embed[1], other))
    for layer, other in layers:
        layer.register_forward_pre_hook(lambda _, args, other=other: (other.expand_as(args[0]),))


def _sinusoid(values: Tensor, width: int, dtype: torch.dtype, *, angles: bool) -> Tensor:
    """`sinusoid` with values and frequencies in half precision, and also the angles or not."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half)).to(dtype)
    return _waves(values.to(dtype)[..., None], frequencies, dtype, angles=angles)


def _features(codes: Tensor, weight: Tensor, dtype: torch.dtype, *, angles: bool) -> Tensor:
    """`FourierFeatures` of treatment codes, in the same way."""
    z = 2 * math.pi * 10 * (codes + 1)
    return _waves(z.to(dtype)[..., None], weight[:, 0].to(dtype), dtype, angles=angles)


def _waves(values: Tensor, frequencies: Tensor, dtype: torch.dtype, *, angles: bool) -> Tensor:
    angle = values.float() * frequencies.float()
    if angles:
        angle = angle.to(dtype).float()
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
