"""The TaDiff runtime: from a case on disk to a calibrated forecast, without torch.

from tadiff_rt import Forecaster, read_case
forecast = Forecaster.load("model.tadiff").predict(read_case("sub-17"), day=510, treatment="TMZ")
"""

import importlib
import os
from typing import TYPE_CHECKING

# onnxruntime 1.32 reports its use from the moment it is imported, and keeps an identity of the
# machine in the user's home for that. Data of patients are near; nothing is to be sent anywhere.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Case",
    "Forecast",
    "Forecaster",
    "ReadOptions",
    "Session",
    "TadiffError",
    "Volume",
    "read_case",
]

_MODULES = {
    "Case": "case",
    "Forecast": "assembly",
    "Forecaster": "forecast",
    "ReadOptions": "case",
    "Session": "case",
    "TadiffError": "errors",
    "Volume": "case",
    "read_case": "readers",
}
"""Public name -> the module that it is defined in."""

if TYPE_CHECKING:
    from tadiff_rt.assembly import Forecast
    from tadiff_rt.case import Case, ReadOptions, Session, Volume
    from tadiff_rt.errors import TadiffError
    from tadiff_rt.forecast import Forecaster
    from tadiff_rt.readers import read_case
else:  # a type checker would believe in every name

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for (PEP 562).

        Every command starts with this package, and those that forecast nothing need none of it.
        """
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value  # so that this is not called again
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
