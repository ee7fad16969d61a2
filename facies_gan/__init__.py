"""Facies realisations that honour wells, from a multi-scale GAN.

Train with `train.train(TrainingOptions(...), RunOptions(...))`; `load` a run, `generate` files from it, or
take `realisations` as arrays. The interpolators, pyramids and `ColorEncoder` serve on their own; see
docs/facies_gan.md.
"""

from __future__ import annotations

from common.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
