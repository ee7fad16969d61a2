"""How much worse sections get when gathers are not as in training: noise, dead traces, other wavelets, gains.

Letters: S shots, T time samples, R receivers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common.noise import numpy_stream
from common.report import table
from velocity_inversion.augment import Sample, change_peak, noise_like
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.predictions import predict_members

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class Degraded(Dataset[Sample]):
    """The samples of a data set with their gathers changed; the change is drawn by the sample's name.

    Args:
        dataset: clean samples.
        name: of the change.
        change: (gathers [S, T, R], live [S, R] to be changed in place, stream) -> gathers.
        seed: of the draws.
    """

    def __init__(self, dataset: ShotDataset, name: str, change: Change, seed: int = 0) -> None:
        self.dataset, self.name, self.change, self.seed = dataset, name, change, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = dict(self.dataset[index])
        rng = numpy_stream(self.seed, f"robustness {self.name} {sample['id']}")
        live = sample["live"].numpy().copy()
        gathers = self.change(sample["gathers"].numpy().astype(np.float64), live, rng)
        sample["gathers"] = torch.from_numpy(gathers.astype(np.float32))
        sample["live"] = torch.from_numpy(live)
        return sample


def changes(dt_s: float, peak_hz: float) -> dict[str, Change]:
    """Return the changes that the table lists."""

    def noise(snr_db: float) -> Change:
        return lambda g, live, rng: g + noise_like(g, dt_s, peak_hz, snr_db, rng)

    def dead(share: float) -> Change:
        def change(g: np.ndarray, live: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            live &= rng.random(live.shape) >= share
            return g * live[:, None, :]

        return change

    def lose_a_shot(g: np.ndarray, live: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shot = int(rng.integers(len(g)))
        live[shot] = False
        g[shot] = 0
        return g

    def peak(factor: float) -> Change:
        return lambda g, live, rng: change_peak(g, dt_s, peak_hz, factor * peak_hz)

    def gain(factor: float) -> Change:
        return lambda g, live, rng: g * factor

    return {
        "noise, 20 dB": noise(20),
        "noise, 10 dB": noise(10),
        "10 % of traces dead": dead(0.1),
        "30 % of traces dead": dead(0.3),
        "a shot missing": lose_a_shot,
        "peak frequency -10 %": peak(0.9),
        "peak frequency +10 %": peak(1.1),
        "gain 0.8": gain(0.8),
        "gain 1.2": gain(1.2),
    }


def robustness(
    models: Mapping[str, Ensemble],
    test: ShotDataset,
    truth: np.ndarray,
    clean_mae: Mapping[str, float],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Return {change: {model: MAE over its MAE on clean gathers}}.

    Args:
        models: name -> ensemble.
        test: clean samples.
        truth: [N, Z, X], km/s.
        clean_mae: name -> m/s.
        device: where to predict.
    """
    survey = test.source.survey
    found: dict[str, dict[str, float]] = {}
    for model, ensemble in models.items():
        interval = ensemble.preprocessing.interval(survey)
        for name, change in changes(interval, survey.wavelet.peak_hz).items():
            changed: Any = Degraded(ShotDataset(test.source, ensemble.preprocessing), name, change)
            v, _ = predict_members(ensemble, changed, device).combined(ensemble.weights)
            mae = 1000 * float(np.abs(v.numpy() - truth).mean())
            found.setdefault(name, {})[model] = mae / clean_mae[model]
    return found


def ratio_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the ratios as a Markdown table."""
    models = list(next(iter(found.values())))
    rows = [[name, *(f"{ratios[model]:.2f}" for model in models)] for name, ratios in found.items()]
    return table(["change", *models], rows)
