"""Facies realisations that honour wells, from a multi-scale GAN.

Train with `train.train(TrainingOptions(...), RunOptions(...))`; `load` a run, `generate` files from it, or
take `realisations` as arrays. The interpolators, pyramids and `ColorEncoder` serve on their own; see
docs/facies_gan.md.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "TrainingOptions": ("config", "TrainingOptions"),
    "TrainningOptions": ("config", "TrainningOptions"),
    "RunOptions": ("config", "RunOptions"),
    "GenerateConfig": ("config_generate", "GenerateConfig"),
    "DataFiles": ("dataset", "DataFiles"),
    "ColorEncoder": ("color_encoder", "ColorEncoder"),
    "load": ("model_files", "load"),
    "generate": ("infer", "generate"),
    "realisations": ("infer", "realisations"),
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
