"""How to train: every setting of a run that its weights depend on, and named sets of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from tadiff_rt.errors import UsageError
from tadiff_train.data.windows import Augmentation, Sources, TargetSlots
from tadiff_train.diffusion import LOSSES

Precision = Literal["fp32", "bf16", "fp16"]
Timesteps = Literal["all", "forecast"]
Start = Literal["published", "pass_through"]

PUBLISHED: Mapping[str, float | int | str] = MappingProxyType(
    {
        "learning_rate": 2.5e-4,
        "warmup_steps": 1000,
        "weight_decay": 3e-5,
        "clip_norm": 1.5,
        "ema_decay": 0.0,
        "precision": "fp32",
        "loss": "published",
        "target_slots": "published",
        "sources": "published",
        "augmentation": "none",
        "timesteps": "all",
        "start": "published",
    }
)
"""What is known of the published training: rate and warm-up of the paper (the published settings
file has 5e-3 and 100), clipping and decay of that file, windows and loss of its code."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. Defaults are what this project holds right; PRESETS has the published ones."""

    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 8
    """Windows of one optimiser step, over all processes and accumulated passes."""
    accumulate: int = 1
    """Passes that one optimiser step adds up, each with 1 / accumulate of the batch."""
    learning_rate: float = 2.5e-4
    warmup_steps: int = 100
    """Steps in which the learning rate rises; then it falls to 0 as half a cosine."""
    weight_decay: float = 3e-5
    clip_norm: float = 1.5
    """Longer gradients are scaled down to this Euclidean norm."""
    ema_decay: float = 0.999
    """Of the moving average of weights that is saved; 0 saves the last weights."""
    precision: Precision = "fp32"
    """Of convolutions and attention; weights, losses, norms and embeddings stay in fp32."""
    loss: str = "unbiased"
    """A key of `tadiff_train.diffusion.LOSSES`."""
    target_slots: TargetSlots = "future"
    """See `tadiff_train.data.windows.choose_target`."""
    sources: Sources = "mixed"
    """See `tadiff_train.data.windows.choose_sessions`."""
    augmentation: Augmentation = "flip"
    """A key of `tadiff_train.data.augment.AUGMENTS`."""
    timesteps: Timesteps = "forecast"
    """"all", or "forecast": only those that a forecast from the card's `start_lam` passes."""
    start: Start = "pass_through"
    """Initial weights: "published", or "pass_through" (see `tadiff_train.start`)."""
    seed: int = 0
    save_every: int = 500
    """Steps between saves, each after a look at the held-out patients."""
    log_every: int = 10
    """Steps between lines of the curves."""
    picture_every: int = 500
    """Steps between sample pictures; 0 for none."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("loss", self.loss, tuple(LOSSES)),
            ("target_slots", self.target_slots, get_args(TargetSlots)),
            ("sources", self.sources, get_args(Sources)),
            ("augmentation", self.augmentation, get_args(Augmentation)),
            ("precision", self.precision, get_args(Precision)),
            ("timesteps", self.timesteps, get_args(Timesteps)),
            ("start", self.start, get_args(Start)),
        ):
            if value not in allowed:
                raise UsageError(
                    "TD3034", f"{name} must be one of {', '.join(allowed)}, got {value!r}"
                )
        if self.start == "pass_through" and self.target_slots != "future":
            what = "start pass_through needs the target in the last slot, target_slots future"
            raise UsageError(
                "TD3080", f"{what}, got {self.target_slots}", fix="pass --start published"
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                "TD3039",
                f"a batch of {self.batch_size} cannot be added up in {self.accumulate} passes",
            )


FREE = ("save_every", "log_every", "picture_every")
"""Settings that change no weight, and so may differ when a run is resumed."""

PRESETS: Mapping[str, Mapping[str, float | int | str]] = MappingProxyType(
    {"default": MappingProxyType({}), "published": PUBLISHED}
)
"""Settings that differ from the defaults of `FitConfig`."""


def config_of(preset: str, changes: Mapping[str, Any]) -> FitConfig:
    """The settings of a preset, with changes; a change to None is none.

    Raises:
        UsageError: TD3034, there is no such preset or no such value of a setting.
    """
    if preset not in PRESETS:
        what = f"preset must be one of {', '.join(PRESETS)}, got {preset!r}"
        raise UsageError("TD3034", what)
    asked: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return FitConfig(**{**PRESETS[preset], **asked})
