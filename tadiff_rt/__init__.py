"""The TaDiff runtime: from a case on disk to a calibrated forecast, without torch."""
