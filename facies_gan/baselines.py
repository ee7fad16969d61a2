"""What realisations are compared with: truncated Gaussian fields, pasted data, SNESIM and its known figures.

Each baseline sees the same reference, the same hard data and the same number of realisations as the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from common.log import get_logger
from facies_gan.gaussian import Covariance, paste, simulate
from facies_gan.metrics_spatial import Grids, as_grids, number_of_bodies
from facies_gan.snesim import SnesimError, run_snesim
from facies_gan.wells import WellSet

__all__ = [
    "BASELINES",
    "Baseline",
    "REFERENCE_SOURCE",
    "STREBELLE_REFERENCE",
    "is_strebelle",
    "paste",
    "reference_column",
    "run_baseline",
    "simulate",
]

BASELINES = ("tgs", "snesim")

REFERENCE_SOURCE = (
    "SNESIM (mps_snesim_tree of scikit-mps 0.6.0; 3 multigrids, 25 conditioning nodes, template 5 x 5) on "
    "Strebelle's "
    "250 x 250 channel image, 20 realisations, nine hard data; the band is the upper half of the image "
    "against its "
    "lower half"
)
# Measure -> (SNESIM, half of the image against half), for a table without SNESIM.
STREBELLE_REFERENCE: dict[str, tuple[float | None, float | None]] = {
    "hard_match": (1.0, None),
    "proportion": (0.028, 0.019),
    "variogram": (0.0359, 0.0363),
    "connectivity": (0.133, 0.0534),
    "mph2": (0.00122, 0.00073),
    "mph3": (0.00261, 0.00229),
    "mph4": (0.00648, 0.00805),
    "mph4_stride2": (0.0316, 0.0194),
    "mph4_stride4": (0.1021, 0.0795),
    "gamma": (0.282, None),
    "bodies": (13.8, None),
    "entropy": (0.828, None),
    "isolated": (0.0, None),
    "entropy_1": (0.31, None),
    "entropy_2": (0.45, None),
    "entropy_4": (0.62, None),
    "entropy_6": (0.75, None),
    "entropy_10": (0.81, None),
    "entropy_20": (0.83, None),
}


@dataclass(frozen=True)
class Baseline:
    """What a baseline gave.

    Attributes:
        name: its flag.
        realisations: uint8 [N, H, W]; None when it was not run.
        cpu_seconds: that it took, fitting included.
        reason: why it was not run.
    """

    name: str
    realisations: np.ndarray | None
    cpu_seconds: float = 0.0
    reason: str = ""

    @property
    def note(self) -> str:
        """What a table says where there are no figures."""
        return "" if self.realisations is not None else f"not run: {self.reason}"


def run_baseline(
    name: str,
    reference: Grids,
    num_classes: int,
    shape: tuple[int, int],
    count: int,
    *,
    wells: WellSet | None = None,
    seed: int = 0,
    covariance: Covariance | None = None,
) -> Baseline:
    """Run the baseline "tgs" or "snesim"; one that cannot run gives a warning and its reason.

    SNESIM takes one training image: the first grid of the reference.

    Args:
        name: of the baseline.
        reference: what it learns from.
        num_classes: C.
        shape: (H, W) of the realisations.
        count: realisations.
        wells: hard data.
        seed: of the realisations.
        covariance: of tgs, when it was fitted before.
    """
    if name == "tgs":
        started = time.process_time()
        grids = simulate(reference, num_classes, shape, count, seed=seed, wells=wells, covariance=covariance)
        return Baseline(name, grids, time.process_time() - started)
    if name != "snesim":
        raise ValueError(f"baseline {name!r}: expected one of {', '.join(BASELINES)}")
    try:
        image = as_grids(reference)[0]
        found = run_snesim(image, shape, count, num_classes, wells=wells, seed=seed + 1)
        return Baseline(name, found.realisations, found.cpu_seconds)
    except SnesimError as error:
        get_logger().warning("warning: baseline snesim not run: %s", error)
        return Baseline(name, None, reason=str(error))


def is_strebelle(reference: Grids) -> bool:
    """Return whether a reference is the 250 x 250 channel image whose figures are known."""
    grids = as_grids(reference)
    if len(grids) != 1 or grids[0].shape != (250, 250) or grids[0].max() > 1:
        return False
    return abs(float(grids[0].mean()) - 0.26744) < 1e-4 and number_of_bodies(grids[0], 1) == 3


def reference_column(measure: str) -> float | None:
    """Return SNESIM's published figure of a measure on the Strebelle image; None when there is none."""
    return STREBELLE_REFERENCE.get(measure, (None, None))[0]
