"""Every method on the same unseen rows: the shipped surrogate, its other candidates, and the baselines.

Letters: n rows, r_s spatial modes, T frames, M nodes, V fields.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from common.errors import DataError
from common.noise import gaussian
from simulgen_vae import baselines, metrics
from simulgen_vae.basis import Basis
from simulgen_vae.constraints import constraints_of
from simulgen_vae.contest import predict_rows
from simulgen_vae.field_data import FieldData
from simulgen_vae.front_end import FrontEnd
from simulgen_vae.gp2 import fit_predictor
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.model_files import Surrogate
from simulgen_vae.pairs import LatentNetPredictor, Pair, batched, fit_latent_gp
from simulgen_vae.predictor import Predictor, TrainingSet
from simulgen_vae.uncertainty import Calibration, field_std

OURS, AUTO_ENCODING = "ours", "vae_autoencoding"
CURVE_POINTS = 200_000  # of |error|/std that the coverage curve is drawn from


@dataclass
class Method:
    """One method on the scored rows.

    Attributes:
        name: as in the table.
        c: [n, r_s, T] its predictions.
        fit_seconds: CPU time of its training; NaN when it was not measured.
        ms: milliseconds a trajectory, decoding included; NaN for what needs the truth.
        parameters: trained weights; 0 for what has none.
        note: what was chosen.
        spread: of posterior draws around their mean, relative L2; NaN for all else.
        scores: of each row.
        against_time: [T] error of each frame, mean over rows.
    """

    name: str
    c: torch.Tensor
    fit_seconds: float = float("nan")
    ms: float = float("nan")
    parameters: int = 0
    note: str = ""
    spread: float = float("nan")
    scores: list[metrics.Scores] = field(default_factory=list)
    against_time: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def summary(self) -> metrics.Scores:
        """Mean, median, quantile and maximum over the rows."""
        return metrics.summarise(self.scores)


@dataclass
class Bars:
    """How good the error bars of the shipped predictor are, means over the rows.

    Attributes:
        coverage: share of points inside the band.
        nominal: what it is to be.
        mean_width: full width of the band, in the field's unit.
        crps: of the normal law with the predicted standard deviation.
        factor: half width in standard deviations.
        ratios: sample of |error|/std.
        over: what the factor was calibrated over, see `Calibration`.
    """

    coverage: float
    nominal: float
    mean_width: float
    crps: float
    factor: float
    ratios: np.ndarray
    over: str = "trajectories"


def winner_of(surrogate: Surrogate) -> Predictor:
    """Return the predictor that ships.

    Raises:
        DataError: there is none, for the training had neither parameters nor pictures.
    """
    if surrogate.predictor is None:
        raise DataError(
            "the model predicts nothing, it was trained without parameters and pictures; train it with "
            "--param_dir"
        )
    return surrogate.predictor


def our_methods(
    surrogate: Surrogate,
    train: TrainingSet,
    rows: TrainingSet,
    recon_iter: int,
    seed: int,
    fitted: Mapping[str, Predictor] | None = None,
) -> dict[str, Method]:
    """Return what ships first, then VAE + net, VAE + GP and gp2, and the auto-encoding.

    A model that was trained without parameters and pictures has its auto-encoding alone.

    Args:
        surrogate: the model.
        train: its training rows.
        rows: the rows to predict.
        recon_iter: posterior draws of the auto-encoding.
        seed: of the draws.
        fitted: VAE + GP and gp2 as the training fitted them; those that are missing are fitted to `train`.
    """
    found = {} if surrogate.predictor is None else _predicting_methods(surrogate, train, rows, fitted or {})
    c, spread = auto_encoding(surrogate.vae, rows.c, recon_iter, seed, FrontEnd(surrogate.basis))
    note = "sees the truth"
    if recon_iter > 1:
        note += f"; mean of {recon_iter} draws, which lie {spread:.3g} around it"
    found[AUTO_ENCODING] = Method(AUTO_ENCODING, c, note=note, spread=spread)
    return found


def _predicting_methods(
    surrogate: Surrogate, train: TrainingSet, rows: TrainingSet, fitted: Mapping[str, Predictor]
) -> dict[str, Method]:
    """Return what predicts from inputs, what ships first."""
    winner, basis, vae = winner_of(surrogate), surrogate.basis, surrogate.vae
    found = {OURS: _timed(OURS, winner, rows, basis)}
    share = f", weight {winner.weight:g}" if isinstance(winner, Pair) else ""
    found[OURS].note = winner.name + share
    if surrogate.conditioner is not None and winner.name != "vae_net":
        net = LatentNetPredictor({"kind": "vae_net"}, vae, surrogate.conditioner).eval()
        found["vae_net"] = _timed("vae_net", net, rows, basis)
    fits = {"vae_gp": lambda: fit_latent_gp(train, vae), "gp2": lambda: fit_predictor(train)}
    for name, fit in fits.items():
        if winner.name == name:
            continue
        started = time.process_time()
        predictor = fitted.get(name) or fit()
        seconds = time.process_time() - started
        found[name] = _timed(name, predictor, rows, basis)
        found[name].fit_seconds = math.nan if name in fitted else seconds
    return found


def auto_encoding(
    vae: HierarchicalVae, c: torch.Tensor, num_draws: int, seed: int, front_end: FrontEnd
) -> tuple[torch.Tensor, float]:
    """Return reconstructions [n, r_s, T], and the spread of the draws that they are the mean of.

    One draw stands for the posterior mean, whose spread is NaN. The spread is the standard deviation of a
    draw's field around the mean of all, relative to that mean, root mean square over samples.
    """
    if num_draws == 1:
        return batched(vae.reconstruct, c), math.nan

    def draw(k: int) -> torch.Tensor:
        noise = gaussian((len(c), vae.shape.num_latents), seed, "reconstruction", k)
        return batched(lambda i: vae.reconstruct(c[i], noise[i]), torch.arange(len(c)))

    mean = torch.zeros_like(c)
    for k in range(num_draws):
        mean += draw(k)
    mean /= num_draws
    square = sum(float(front_end.relative_l2(draw(k), mean).square().mean()) for k in range(num_draws))
    return mean, math.sqrt(square / (num_draws - 1))


def _timed(name: str, predictor: Predictor, rows: TrainingSet, basis: Basis) -> Method:
    """Return the method with its milliseconds for one trajectory at a time, the median of up to 20."""
    c = predict_rows(predictor, rows)
    times = []
    with torch.no_grad():
        for i in range(min(20, len(rows))):
            inputs = rows.subset(torch.tensor([i])).inputs()
            started = time.perf_counter()
            basis.decode(predictor(inputs))
            times.append(1000.0 * (time.perf_counter() - started))
    count = sum(p.numel() for p in predictor.parameters())
    return Method(name, c, ms=float(np.median(times)), parameters=count)


def baseline_methods(
    names: tuple[str, ...], fitted_on: TrainingSet, rows: TrainingSet, num_modes: int
) -> dict[str, Method]:
    """Return mean field, POD oracle and the named regressions.

    Args:
        names: of `baselines.NAMES`.
        fitted_on: training and validation rows.
        rows: the rows to predict.
        num_modes: POD scores.
    """
    label = f"pod{num_modes}"
    found = {
        "mean_field": Method("mean_field", baselines.mean_field(fitted_on, len(rows)), 0.0),
        f"{label}_oracle": Method(
            f"{label}_oracle", baselines.pod_oracle(fitted_on, num_modes, rows.c), 0.0, note="sees the truth"
        ),
    }
    plain = {name: (name, fitted_on) for name in names}
    if "gpr_shared" in names and fitted_on.symmetry is not None:
        plain["gpr_shared_mirror"] = ("gpr_shared", fitted_on.augmented()[0])
    for title, (name, data) in plain.items():
        fitted = baselines.fit_baseline(name, data, num_modes)
        if fitted is None:
            continue
        started = time.perf_counter()
        c = fitted.predict(rows)
        ms = 1000.0 * (time.perf_counter() - started) / len(rows)
        key = f"{label}_{title}"
        found[key] = Method(key, c, fitted.seconds, ms, note=fitted.note)
    return found


def score_methods(
    methods: Mapping[str, Method], surrogate: Surrogate, data: FieldData, numbers: np.ndarray
) -> list[float]:
    """Fill scores and error against time of every method, one true trajectory in memory at a time.

    What ships keeps its hard constraints, as it does in inference.

    Returns:
        the relative L2 error of each row that the basis alone leaves (encode, decode).
    """
    totals = {name: np.zeros(data.num_frames) for name in methods}
    floor, basis, limit = [], surrogate.basis, constraints_of(surrogate)
    with torch.no_grad():
        for k, number in enumerate(numbers):
            truth = data.trajectory(int(number))
            again = basis.decode(basis.encode(torch.from_numpy(truth))).numpy()
            floor.append(metrics.relative_l2(again, truth))
            for name, method in methods.items():
                field = basis.decode(method.c[k])
                found = (limit(field) if name == OURS else field).numpy()
                method.scores.append(metrics.score_sample(found, truth))
                totals[name] += metrics.error_against_time(found, truth)
    for name, method in methods.items():
        method.against_time = totals[name] / len(numbers)
    return floor


def score_bars(
    surrogate: Surrogate,
    calibration: Calibration,
    rows: TrainingSet,
    data: FieldData,
    numbers: np.ndarray,
    seed: int,
) -> Bars:
    """Return coverage, width and CRPS of the shipped predictor's bars on unseen rows."""
    winner, basis, limit = winner_of(surrogate), surrogate.basis, constraints_of(surrogate)
    keep = max(1, CURVE_POINTS // len(numbers))
    parts = []
    sums = np.zeros(3)
    for k, number in enumerate(numbers):
        inputs = rows.subset(torch.tensor([k])).inputs()
        with torch.no_grad():
            found = limit(basis.decode(winner(inputs)[0])).numpy()
        spread = limit.of_std(field_std(winner, inputs, basis, calibration.residual_std, seed=seed)[0])
        std = spread.clamp_min(1e-30).numpy()  # known nodes have none
        truth = data.trajectory(int(number))
        width = calibration.factor * std
        sums += [
            metrics.coverage(found, width, truth),
            2 * float(width.mean()),
            metrics.normal_crps(found, std, truth),
        ]
        ratios = (np.abs(truth - found) / std).reshape(-1)
        parts.append(ratios[:: max(1, ratios.size // keep)])
    shares = sums / len(numbers)
    return Bars(
        float(shares[0]),
        calibration.coverage,
        float(shares[1]),
        float(shares[2]),
        calibration.factor,
        np.concatenate(parts),
        calibration.over,
    )


def constraint_scores(found: np.ndarray, truth: np.ndarray, grid: tuple[int, int] | None) -> metrics.Scores:
    """Return cRMSE, bRMSE and the worst bound violation of a trajectory [T, M, V], and the truth's values."""
    conserved, change = metrics.conservation_error(found, truth)
    scores = {
        "conserved_rmse": conserved,
        "conserved_rms_of_truth": change,
        "bound_violation": metrics.bound_violation(found, float(truth.min()), float(truth.max())),
        "range_of_truth": float(truth.max() - truth.min()),
    }
    if grid is not None and min(grid) > 2:
        boundary, size = metrics.boundary_error(found, truth, metrics.edge_nodes(grid))
        scores |= {"boundary_rmse": boundary, "boundary_rms_of_truth": size}
    return scores
