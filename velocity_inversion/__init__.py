"""From raw shot gathers to a velocity section with error bars and a waveform misfit.

Train an ensemble with `train.train`, use it with `load` and `predict`; `quick_test_prediction` shows whether
everything works. For a training loop of one's own there are `EnsembleVelocityModel(config)`,
`VelocityInversionLoss(config)` and `create_data_loaders(path)`, see docs/velocity_inversion.md.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "Config": ("config", "TrainConfig"),
    "SeismicEncoder": ("encoder", "SeismicEncoder"),
    "VelocityDecoder": ("model", "VelocityDecoder"),
    "EnsembleVelocityModel": ("ensemble", "EnsembleVelocityModel"),
    "VelocityInversionLoss": ("criterion", "VelocityInversionLoss"),
    "create_data_loaders": ("dataset", "create_data_loaders"),
    "load": ("infer", "load"),
    "predict": ("infer", "predict"),
    "quick_test_prediction": ("quick", "quick_test_prediction"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package costs nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *_PLACES])
