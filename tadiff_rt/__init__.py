"""The TaDiff runtime: from a case on disk to a calibrated forecast, without torch.

from tadiff_rt import Forecaster, read_case
forecast = Forecaster.load("model.tadiff").predict(read_case("sub-17"), day=510, treatment="TMZ")
"""

import os

from tadiff_rt.case import Case, ReadOptions, Session, Volume
from tadiff_rt.errors import TadiffError
from tadiff_rt.forecast import Forecast, Forecaster
from tadiff_rt.readers import read_case

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
