"""From raw shot gathers to a velocity section with error bars and a waveform misfit.

Train an ensemble with `train.train`, use it with `load` and `predict`; `quick_test_prediction` shows whether
everything works. For a training loop of one's own there are `EnsembleVelocityModel(config)`,
`VelocityInversionLoss(config)` and `create_data_loaders(path)`, see docs/velocity_inversion.md.
"""

from __future__ import annotations

from common.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
