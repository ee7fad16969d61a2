"""Simple answers that a network must beat: the mean section, and a ridge from gathers to a depth profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from torch.utils.data import Dataset

COMPONENTS = 64
PENALTIES = np.logspace(-2, 6, 17)


def log_gathers(dataset: Dataset[Any], rows: Sequence[int]) -> np.ndarray:
    """Return [N, S T R]: signed logarithms of the gathers, thinned by two along time."""
    found = []
    for row in rows:
        gathers = dataset[row]["gathers"].numpy()[:, ::2]
        found.append((np.sign(gathers) * np.log1p(np.abs(gathers))).ravel())
    return np.stack(found)


def depth_trend(train: Dataset[Any], test: Dataset[Any]) -> np.ndarray:
    """Return sections [N, Z, X] (km/s): ridge from 64 principal components to the mean profile of depth.

    Args:
        train: samples with gathers and vp.
        test: samples with gathers.
    """
    rows, wanted = range(len(train)), range(len(test))  # type: ignore[arg-type]
    gathers = log_gathers(train, rows)
    sections = np.stack([train[row]["vp"][0].numpy() for row in rows])
    pca = PCA(min(COMPONENTS, len(gathers) - 1), svd_solver="randomized", random_state=0).fit(gathers)
    ridge = RidgeCV(PENALTIES).fit(pca.transform(gathers), sections.mean(-1))
    profiles = ridge.predict(pca.transform(log_gathers(test, wanted)))
    return np.repeat(profiles[..., None], sections.shape[-1], axis=-1)
