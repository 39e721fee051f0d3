"""What a checkpoint of another program says of the network and of its training, beside weights.

Weights give neither the number of attention heads nor the schedule of the noise. Programs keep
such numbers as mappings, under names of their own: Lightning's `hyper_parameters`, a script's
`args`, a whole OmegaConf tree. Here the names and places that count are listed, and each value
comes with the place that states it. Nothing is guessed: a value that is not understood is left out
and said, two values of one quantity are refused, and so is a schedule that is not the linear one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tadiff_export.formats import kind, mappings, place_name
from tadiff_rt.errors import ModelFileError

CONTAINERS = {"hyper_parameters", "hparams", "config", "cfg", "args", "params", "model", "net"}
CONTAINERS |= {"network", "unet", "diffusion", "model_config", "net_config", "model_args"}
"""Mappings that hold hyper-parameters; elsewhere `T` or `schedule` may mean anything."""


@dataclass(frozen=True)
class Stated:
    """A hyper-parameter, and where the file states it."""

    value: Any
    where: str


def find_settings(root: object) -> tuple[dict[str, Stated], tuple[str, ...]]:
    """What the file states of `QUANTITIES`, and notes on what could not be read.

    Raises:
        ModelFileError: TD4015, two different values for one of them; TD4019, a schedule that is
            not linear, or betas that are no such numbers.
    """
    settings: dict[str, Stated] = {}
    notes = []
    for place, found in mappings(root, CONTAINERS.__contains__):
        for quantity, (names, read) in QUANTITIES.items():
            for name in names:
                if (stored := found.get(name)) is None:
                    continue
                value, where = read(stored), place_name((*place, name))
                if quantity in OF_THE_SCHEDULE and value is None:
                    said = repr(stored[:60]) if isinstance(stored, str) else kind(stored)
                    what = f"{where} ({said}) is not of a linear schedule, the only one known"
                    raise ModelFileError("TD4019", what)
                if value is None:
                    notes.append(f"{where} is not understood and left out ({kind(stored)})")
                    continue
                known = settings.setdefault(quantity, Stated(value, where))
                if not same(known.value, value):
                    what = f"{known.where} is {known.value} and {where} is {value}"
                    raise ModelFileError("TD4015", f"two values of {quantity}: {what}")
    return settings, tuple(notes)


def same(a: Any, b: Any) -> bool:
    """Equality, of floats to float32 rounding: one program stores both precisions."""
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def whole(value: object) -> int | None:
    """A whole number of at most nine digits, from an int or a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) < 1e9 and value == int(value) else None


def wholes(value: object) -> tuple[int, ...] | None:
    """Up to 64 whole numbers."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
        return None
    numbers = [n for n in map(whole, value) if n is not None]
    return tuple(numbers) if len(numbers) == len(value) else None


def fraction(value: object) -> float | None:
    """A number between 0 and 1, both excluded, as all betas are."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1 else None


def linear(value: object) -> str | None:
    """The name of the one schedule there is."""
    return "linear" if isinstance(value, str) and value == "linear" else None


QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[object], Any]]] = {
    "num_heads": (("num_heads",), whole),
    "timesteps": (("max_T", "num_train_timesteps", "timesteps", "T"), whole),
    "schedule": (("ddpm_schedule", "noise_schedule", "beta_schedule", "schedule"), linear),
    "beta_start": (("beta_start",), fraction),
    "beta_end": (("beta_end",), fraction),
    "model_channels": (("model_channels",), whole),
    "num_res_blocks": (("num_res_blocks",), whole),
    "channel_mult": (("channel_mult",), wholes),
    "attention_strides": (("attention_resolutions", "attention_strides"), wholes),
}
"""Hyper-parameter -> its names in files, and how a value is read. `diffusion_steps` is not one:
upstream's is the number of solver steps, not of trained timesteps."""
OF_THE_SCHEDULE = {"schedule", "beta_start", "beta_end"}
"""Of these there is no leaving out: the rest would be taken as published."""
