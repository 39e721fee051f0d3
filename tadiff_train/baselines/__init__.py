"""Forecasts without a network, beside which the network's are shown."""

from tadiff_train.baselines.growth import GrowthFit, GrowthForecast, fit_growth, forecast_growth

__all__ = ["GrowthFit", "GrowthForecast", "fit_growth", "forecast_growth"]
