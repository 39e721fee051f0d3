"""What the options of `tadiff-train fit` ask for, checked before anything is read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tadiff_rt.card import ModelCard
    from tadiff_train.fit import FitConfig
    from tadiff_train.network import NetworkConfig

SETTINGS = (
    "steps", "batch_size", "accumulate", "seed", "learning_rate", "warmup_steps", "weight_decay",
    "clip_norm", "ema_decay", "precision", "loss", "target_slots", "sources", "augmentation",
    "timesteps", "start", "save_every", "log_every", "picture_every",
)  # fmt: skip


def settings_of(given: Mapping[str, Any]) -> "FitConfig":
    """The settings of the preset with what was given."""
    from tadiff_train.fit import config_of

    return config_of(given["preset"], {name: given[name] for name in SETTINGS})


def network_config(**fields: object) -> "NetworkConfig":
    """The network asked for; its own complaints become usage errors."""
    from pydantic import ValidationError

    from tadiff_rt.errors import UsageError
    from tadiff_train.network import NetworkConfig

    try:
        return NetworkConfig.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        raise UsageError("TD3037", f"no such network: {first['msg']}") from None


def model_card(**fields: object) -> "ModelCard":
    """A card before the training data are known; its own complaints become usage errors."""
    from pydantic import ValidationError

    from tadiff_rt.card import ModelCard
    from tadiff_rt.errors import UsageError

    try:
        return ModelCard.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "start-lam"
        raise UsageError("TD3038", f"--{option}: {first['msg']}") from None


def fractions_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the parts, in the order that `tadiff-train inspect` and `evaluate` have.

    Raises:
        UsageError: TD3085, nobody would be left to train on.
    """
    from tadiff_rt.errors import UsageError

    val, test = given["val_fraction"], given["test_fraction"]
    if val + test >= 1:
        what = f"--val-fraction {val:g} and --test-fraction {test:g} leave nobody to train on"
        raise UsageError("TD3085", what, fix="make them add up to less than 1")
    return {"train": 1 - val - test, "val": val, "test": test}
