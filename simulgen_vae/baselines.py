"""What every surrogate has to beat: regressions from the inputs to POD scores, by well-kept libraries.

All baselines may learn from training and validation rows together, which is their advantage; mirror images
are given to one row of the table only.

Letters: n rows, F features, m POD modes, B queries, r_s spatial modes, T frames.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.noise import numpy_stream
from simulgen_vae.features import InputFeatures, informative_features
from simulgen_vae.predictor import TrainingSet
from simulgen_vae.reduced import TrajectoryPod, fit_trajectory_pod

NAMES = ("rbf", "krr", "gpr", "gpr_shared")
RBF_KERNELS = ("thin_plate_spline", "cubic", "linear", "multiquadric", "gaussian")
KRR_GAMMA = (0.003, 0.01, 0.03, 0.1, 0.3)
KRR_ALPHA = (1e-8, 1e-6, 1e-4, 1e-2)
FOLDS = 5
GPR_ROWS = 500  # per-coefficient GPR up to here, and rows that choose the parameters of the shared one
Regression = Callable[[np.ndarray], np.ndarray]  # features [B, F] -> scores [B, m]


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        name: as in the table.
        regression: features to whitened POD scores.
        features: of the inputs.
        pod: from scores to coefficients.
        seconds: CPU time of the fit.
        note: what was chosen, for the table.
    """

    name: str
    regression: Regression
    features: InputFeatures
    pod: TrajectoryPod
    seconds: float
    note: str = ""

    def predict(self, rows: TrainingSet) -> torch.Tensor:
        """Return the coefficients [B, r_s, T] for the inputs of `rows`."""
        x = self.features(rows.inputs()).numpy()
        return self.pod.decode(torch.from_numpy(np.asarray(self.regression(x), dtype=np.float32)))


def fit_baseline(name: str, data: TrainingSet, num_modes: int) -> Baseline | None:
    """Fit one of `NAMES` on POD-`num_modes`; None where it is not offered (gpr beyond `GPR_ROWS` rows)."""
    if name == "gpr" and len(data) > GPR_ROWS:
        return None
    started = time.process_time()
    features = informative_features(data, torch.arange(len(data)))
    pod = fit_trajectory_pod(data.c.numpy(), num_modes)
    pod = pod.first(max(1, pod.rank))
    x, zeta = features(data.inputs()).numpy(), pod.encode(data.c).double().numpy()
    scales = pod.scales.double().numpy()
    fits: dict[str, Callable[[], tuple[Regression, str]]] = {
        "rbf": lambda: fit_rbf(x, zeta, scales, data.seed),
        "krr": lambda: fit_krr(x, zeta, scales, data.seed),
        "gpr": lambda: fit_gpr(x, zeta, data.seed),
        "gpr_shared": lambda: fit_gpr_shared(x, zeta, scales, data.seed),
    }
    regression, note = fits[name]()
    return Baseline(name, regression, features, pod, time.process_time() - started, note)


def _folds(num_rows: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, held-out) row numbers of each fold, in seeded order."""
    order = numpy_stream(seed, "baseline folds").permutation(num_rows)
    parts = np.array_split(order, min(FOLDS, num_rows))
    return [(np.setdiff1d(order, part), part) for part in parts]


def _best(
    choices: Sequence[Any],
    fit: Callable[[Any, np.ndarray, np.ndarray], Regression],
    x: np.ndarray,
    zeta: np.ndarray,
    scales: np.ndarray,
    seed: int,
) -> Any:
    """Return the choice of the lowest 5-fold error of the weighted scores; a choice that fails is out."""
    errors = []
    for choice in choices:
        try:
            total = 0.0
            for rows, out in _folds(len(x), seed):
                residual = fit(choice, x[rows], zeta[rows])(x[out]) - zeta[out]
                total += float(((residual * scales) ** 2).sum())
        except (np.linalg.LinAlgError, ValueError):
            total = np.inf
        errors.append(total if np.isfinite(total) else np.inf)
    return choices[int(np.argmin(errors))]


def fit_rbf(x: np.ndarray, zeta: np.ndarray, scales: np.ndarray, seed: int) -> tuple[Regression, str]:
    """Return radial basis interpolation (SciPy), its kernel chosen by 5-fold cross-validation."""
    from scipy.interpolate import RBFInterpolator

    def fit(kernel: str, rows: np.ndarray, values: np.ndarray) -> Regression:
        epsilon = 1.0 / np.sqrt(x.shape[1]) if kernel in ("multiquadric", "gaussian") else None
        # A linear trend needs F + 1 points in general position, which few runs do not give.
        degree = {"gaussian": -1, "linear": 0, "multiquadric": 0}.get(kernel, 1)
        return RBFInterpolator(rows, values, kernel=kernel, epsilon=epsilon, degree=degree, smoothing=1e-8)

    kernel = _best(RBF_KERNELS, fit, x, zeta, scales, seed)
    return fit(kernel, x, zeta), kernel


def fit_krr(x: np.ndarray, zeta: np.ndarray, scales: np.ndarray, seed: int) -> tuple[Regression, str]:
    """Return RBF kernel ridge regression (scikit-learn), gamma and alpha by 5-fold cross-validation."""
    from sklearn.kernel_ridge import KernelRidge

    def fit(choice: tuple[float, float], rows: np.ndarray, values: np.ndarray) -> Regression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # singular matrices fall back to least squares, and lose
            settings: dict[str, Any] = {"gamma": choice[0], "alpha": choice[1]}
            return KernelRidge(kernel="rbf", **settings).fit(rows, values).predict

    grid = [(gamma, alpha) for gamma in KRR_GAMMA for alpha in KRR_ALPHA]
    gamma, alpha = _best(grid, fit, x, zeta, scales, seed)
    return fit((gamma, alpha), x, zeta), f"gamma {gamma:g}, alpha {alpha:g}"


def _matern(num_inputs: int, scale: float = 1.0) -> Any:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    lengths: Any = np.full(num_inputs, np.sqrt(num_inputs))
    matern = Matern(length_scale=lengths, length_scale_bounds=(1e-2, 1e4), nu=2.5)
    signal = ConstantKernel(scale, (1e-6 * scale, 1e6 * scale))
    return signal * matern + WhiteKernel(1e-4 * scale, (1e-10 * scale, scale))


def _gaussian_process(kernel: Any, seed: int, optimise: bool = True) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    optimizer: Any = "fmin_l_bfgs_b" if optimise else None
    return GaussianProcessRegressor(kernel, alpha=1e-10, optimizer=optimizer, random_state=seed)


def fit_gpr(x: np.ndarray, zeta: np.ndarray, seed: int) -> tuple[Regression, str]:
    """Return one Gaussian process a score (scikit-learn, ARD Matern-5/2 and noise)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lengths at their bounds: the input does not matter
        processes = [_gaussian_process(_matern(x.shape[1]), seed).fit(x, z) for z in zeta.T]
    return lambda q: np.stack([p.predict(q) for p in processes], axis=1), "Matern-5/2 ARD"


def fit_gpr_shared(x: np.ndarray, zeta: np.ndarray, scales: np.ndarray, seed: int) -> tuple[Regression, str]:
    """Return one Gaussian process for all scores (scikit-learn), each weighing by its scale.

    Beyond `GPR_ROWS` rows a seeded subset chooses the parameters; all rows are conditioned on.
    """
    values = zeta * scales
    kernel = _matern(x.shape[1], float(np.mean(values**2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = np.arange(len(x))
        if len(x) > GPR_ROWS:
            rows = numpy_stream(seed, "shared GPR rows").permutation(len(x))[:GPR_ROWS]
        process = _gaussian_process(kernel, seed).fit(x[rows], values[rows])
        if len(rows) < len(x):
            process = _gaussian_process(process.kernel_, seed, optimise=False).fit(x, values)
    return lambda q: process.predict(q).reshape(len(q), -1) / scales, "Matern-5/2 ARD, one for all"


def mean_field(data: TrainingSet, count: int) -> torch.Tensor:
    """Return the mean coefficients of the rows, repeated, [count, r_s, T]."""
    return data.c.mean(0).expand(count, -1, -1)


def pod_oracle(data: TrainingSet, num_modes: int, c: torch.Tensor) -> torch.Tensor:
    """Return the projection of c [B, r_s, T] on the leading whole-trajectory modes of `data`."""
    pod = fit_trajectory_pod(data.c.numpy(), num_modes)
    return pod.decode(pod.encode(c))
