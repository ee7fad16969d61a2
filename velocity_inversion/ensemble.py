"""The ensemble: independent members, weights fitted on validation data, one checkpoint for all.

Letters: M members, B batch, S shots, R receivers, Z depth, X horizontal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint, plain_tree
from common.errors import DataError
from velocity_inversion.config import TrainConfig
from velocity_inversion.dataset import Preprocessing
from velocity_inversion.geometry import Survey, openfwi_survey
from velocity_inversion.member import PACKAGE, Member, Statistics, fit_statistics, preprocessing_of

KIND = "ensemble"
FILE = "best_ensemble_model.pth"
MODEL_FILE = Path("models") / FILE  # below the folder of a training
FIT_STEPS = 200
FIT_LR = 0.05


@dataclass(frozen=True)
class Calibration:
    """What validation data say about a trained ensemble.

    Attributes:
        conformal: {mode: q}: half-width = q sigma, for the modes "plain" and "tta".
        coverage: nominal coverage that q was fitted for.
        samples: validation samples it was fitted on.
        smoothing_gain: MAPE without less MAPE with post-processing, on validation data; above 0 it helps.
    """

    conformal: dict[str, float] = field(default_factory=dict)
    coverage: float = 0.9
    samples: int = 0
    smoothing_gain: float = 0.0


def combine(
    velocities: torch.Tensor, scales: torch.Tensor, weights: torch.Tensor, how: str = "weighted"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (v, sigma), each [..], of members' velocities and Laplace scales [M, ..] in km/s.

    v = sum_m w_m v_m and sigma^2 = sum_m w_m (2 b_m^2 + (v_m - v)^2): the variance of the mixture.

    Args:
        velocities: [M, ..].
        scales: [M, ..], b.
        weights: [M], summing to 1.
        how: "weighted", "mean" (equal weights) or "median".
    """
    w = weights if how == "weighted" else torch.full_like(weights, 1 / len(weights))
    w = w.reshape(-1, *([1] * (velocities.ndim - 1)))
    v = velocities.median(0).values if how == "median" else (w * velocities).sum(0)
    variance = (w * (2 * scales.square() + (velocities - v).square())).sum(0)
    return v, variance.sqrt()


def fit_weights(velocities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return weights [M] = softmax(a) with the lowest MAPE: 200 Adam steps from uniform.

    The best weights met on the way are returned, uniform ones included, so they are never worse than those.

    Args:
        velocities: [M, N, Z, X], predictions for N validation sections.
        truth: [N, Z, X].
    """
    a = torch.zeros(len(velocities), requires_grad=True)
    optimizer = torch.optim.Adam([a], lr=FIT_LR)
    best, lowest = torch.full((len(velocities),), 1 / len(velocities)), float("inf")
    for _ in range(FIT_STEPS if len(velocities) > 1 else 1):
        w = a.softmax(0)
        mixed = torch.einsum("m,mnzx->nzx", w, velocities)
        loss = ((mixed - truth).abs() / truth).mean()
        if float(loss.detach()) < lowest:
            lowest, best = float(loss.detach()), w.detach().clone()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


class EnsembleVelocityModel(nn.Module):
    """All members in memory, as one differentiable module: for training loops of one's own.

    Inference streams members one at a time instead, see `infer.predict`.

    Args:
        config: members and their networks.
        survey: geometry; the OpenFWI acquisition by default.
    """

    def __init__(self, config: TrainConfig, survey: Survey | None = None) -> None:
        super().__init__()
        self.survey = survey or openfwi_survey()
        self.members = nn.ModuleList(Member(config.variant(k), self.survey) for k in range(config.num_models))
        self.register_buffer("weights", torch.full((config.num_models,), 1 / config.num_models))

    def fit_statistics(self, batches: Iterable[Mapping[str, Any]]) -> Statistics:
        """Fit amplitude tables and mean profile on batches of training data and give them to all members."""
        samples = [
            {name: values[i] for name, values in batch.items()}
            for batch in batches
            for i in range(len(batch["gathers"]))
        ]
        statistics = fit_statistics(samples, self.survey)  # type: ignore[arg-type]
        for member in self.members:
            member.start_from(statistics)  # type: ignore[operator]
        return statistics

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return "vp" [B, 1, Z, X] (weighted), "log_scale" and "members" [M, B, 1, Z, X]."""
        found = [member(batch) for member in self.members]
        velocities = torch.stack([f["vp"] for f in found])
        scales = torch.stack([f["log_scale"] for f in found]).exp()
        v, sigma = combine(velocities, scales, self.weights)  # type: ignore[arg-type]
        # a Laplace distribution of scale b has the standard deviation b sqrt(2)
        return {"vp": v, "log_scale": (sigma / 2**0.5).clamp_min(1e-6).log(), "members": velocities}


@dataclass(frozen=True)
class Ensemble:
    """A trained ensemble as its file holds it; members become networks one at a time.

    Attributes:
        path: of the file.
        configs: configuration of each member.
        survey: geometry that it was trained on.
        weights: [M].
        states: weights of each member's network.
        calibration: of its uncertainty.
        mean_section: [Z, X], mean of the training data, km/s.
        sha256: of the contents.
    """

    path: Path
    configs: tuple[TrainConfig, ...]
    survey: Survey
    weights: torch.Tensor
    states: tuple[dict[str, torch.Tensor], ...]
    calibration: Calibration
    mean_section: torch.Tensor
    sha256: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest velocity, km/s."""
        return self.configs[0].v_min, self.configs[0].v_max

    @property
    def preprocessing(self) -> Preprocessing:
        """Filter and decimation."""
        return preprocessing_of(self.configs[0])

    def members(self, device: torch.device) -> Iterator[Member]:
        """Build one network after the other on `device`."""
        for config, state in zip(self.configs, self.states, strict=True):
            try:
                member = Member(config, self.survey)
                member.load_state_dict(state)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                first = str(error).split("\n")[0]
                raise DataError(
                    f"{self.path}: its weights do not fit its config ({first}); train again"
                ) from error
            yield member.eval().to(device)


def state_of(ensemble: Ensemble) -> dict[str, torch.Tensor]:
    """Return the weights of all members under plain names, `members.<k>.<name>`."""
    return {
        f"members.{k}.{name}": value
        for k, weights in enumerate(ensemble.states)
        for name, value in weights.items()
    }


def save_ensemble(path: Path, ensemble: Ensemble, step: int = 0) -> None:
    """Write the ensemble as one checkpoint under plain names, `members.<k>.<name>`."""
    checkpoints.save(
        path,
        Checkpoint(
            package=PACKAGE,
            kind=KIND,
            config={"members": [plain_tree(asdict(c)) for c in ensemble.configs]},
            normalization={
                "survey": ensemble.survey.to_dict(),
                "weights": ensemble.weights.tolist(),
                "calibration": asdict(ensemble.calibration),
                "mean_section": ensemble.mean_section,
            },
            state_dict=state_of(ensemble),
            step=step,
        ),
    )


def load_ensemble(path: str | Path) -> Ensemble:
    """Read an ensemble from its file or, which is said, from the folder of its training.

    Raises:
        DataError: no such file, of another package or kind, or broken; or a folder without an ensemble.
    """
    path = Path(path)
    advice = "name the --out of a train.py run, or a file"
    if any(path.glob("member_*")):
        advice = "its members are not put together yet; run train.py with --assemble"
    path = checkpoints.file_of_run(path, (str(MODEL_FILE), FILE), advice)
    return ensemble_from(checkpoints.load(path, package=PACKAGE, kinds=[KIND]), path)


def ensemble_from(found: Checkpoint, path: Path) -> Ensemble:
    """Return the ensemble that a checkpoint holds; an exported one has weights and geometry only.

    Raises:
        DataError: an entry is missing or wrong.
    """
    try:
        configs = tuple(config_from(c) for c in found.config["members"])
        survey = Survey.from_dict(found.normalization["survey"])
        calibration = Calibration(**found.normalization.get("calibration", {}))
        states = []
        for k in range(len(configs)):
            prefix = f"members.{k}."
            states.append(
                {n.removeprefix(prefix): v for n, v in found.state_dict.items() if n.startswith(prefix)}
            )
        weights = torch.tensor(found.normalization["weights"])
        mean = found.normalization.get("mean_section", torch.zeros(survey.model_shape_zx))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: {error}; expected a checkpoint of train.py, models/*.pth") from error
    sha256 = checkpoints.content_hash(found.state_dict)
    return Ensemble(path, configs, survey, weights, tuple(states), calibration, mean, sha256)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration from the plain values of a checkpoint; unknown names are left out."""
    known = {f.name: f for f in fields(TrainConfig)}
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            whole: Any = tuple(value) if isinstance(value, list) else value
            kept[name] = Path(whole) if name == "cache_dir" else whole
    return TrainConfig(**kept)


def equal_surveys(a: Survey, b: Survey) -> Sequence[str]:
    """Return in what two surveys differ that a network cannot bridge: the section's grid and bounds."""
    return [
        f"{name} {getattr(a, name)} and {getattr(b, name)}"
        for name in ("model_shape_zx", "dx_m", "dz_m")
        if getattr(a, name) != getattr(b, name)
    ]


def differences(a: Survey, b: Survey, prepare: Preprocessing) -> list[str]:
    """Return in what two surveys differ for a network: the section's grid, the records that it sees."""
    found = list(equal_surveys(a, b))
    clocks = [f"{prepare.length(s)} samples of {1000 * prepare.interval(s):g} ms" for s in (a, b)]
    if clocks[0] != clocks[1]:
        found.append(f"records of {clocks[0]} and {clocks[1]}")
    return found


def require_survey(ensemble: Ensemble, survey: Survey, place: str | Path) -> None:
    """Check that the ensemble can answer for gathers of a survey: the same section, the same clock.

    Args:
        ensemble: trained.
        survey: of the data.
        place: of the data, for the message.

    Raises:
        DataError: another grid, another record length or another interval at the network.
    """
    differ = differences(ensemble.survey, survey, ensemble.preprocessing)
    if differ:
        raise DataError(
            f"{place}: the model {ensemble.path} and these data differ in {'; '.join(differ)}; "
            "train on such data"
        )
