"""The deliverable: one checkpoint with network, basis, statistics, split and the predictor that ships.

<out>/model_save/ holds SimulGen-VAE (all of it), LatentConditioner (the conditioner alone), Candidates (what
the contest fitted beside the winner), latent_vectors.npy [N, nz], xs.npy [N, K, nh], split.json, guard.json;
<out>/ SimulGen-VAE_L2_loss.txt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint, content_hash, plain_tree, plain_weights
from common.errors import DataError
from common.files import atomic_path, write_text
from common.log import get_logger
from simulgen_vae.basis import Basis
from simulgen_vae.conditioner import Conditioner, build_conditioner
from simulgen_vae.model import HierarchicalVae, build_vae
from simulgen_vae.pairs import build_predictor
from simulgen_vae.paths import nearest
from simulgen_vae.predictor import Predictor
from simulgen_vae.progress import CONDITIONER, VAE, Weights, part_of
from simulgen_vae.split import PARTS, Split
from simulgen_vae.symmetry import Symmetry
from simulgen_vae.uncertainty import Calibration

PACKAGE = "simulgen_vae"
FOLDER = "model_save"
MODEL, CONDITIONER_FILE, CANDIDATES_FILE = "SimulGen-VAE", "LatentConditioner", "Candidates"
LOSS_FILE = "SimulGen-VAE_L2_loss.txt"
KIND, CONDITIONER_KIND, CANDIDATES_KIND = "vae", "conditioner", "candidates"
MOST_CANDIDATE_BYTES = 256 << 20  # of a candidate that is kept; a larger one is fitted again when needed


@dataclass(eq=False)
class Surrogate:
    """What a deliverable holds, on the CPU.

    Attributes:
        config: resolved settings of the training, shapes, provenance, names and units of fields and
            parameters, `data_path`, `ships`; plain values.
        basis: between coefficients and fields.
        vae: the network.
        conditioner: None when there were no inputs to learn from.
        predictor: what ships; None without inputs.
        calibration: of its error bars, or None.
        split: of the data set it was trained on.
        calibration_rows: int64, rows kept for the error bars alone; empty = the validation rows served.
        arrays: time [T], coords [M, 3], mask [M], cells_<type>, train_params [n, P]; those there are.
        symmetry: the declared one, or None.
    """

    config: dict[str, Any]
    basis: Basis
    vae: HierarchicalVae
    conditioner: Conditioner | None
    predictor: Predictor | None
    calibration: Calibration | None
    split: Split
    calibration_rows: np.ndarray
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    symmetry: Symmetry | None = None

    @property
    def uses_params(self) -> bool:
        """Whether predictions need parameters."""
        return bool(self.config["uses_params"])

    @property
    def uses_images(self) -> bool:
        """Whether predictions need pictures."""
        return bool(self.config["uses_images"])


def checkpoint_of(surrogate: Surrogate) -> Checkpoint:
    """Return the checkpoint that `read_surrogate` reads."""
    s = surrogate
    parts: dict[str, Weights] = {
        "basis": plain_weights(s.basis),
        VAE: plain_weights(s.vae),
        "split": {name: _integers(getattr(s.split, name)) for name in PARTS}
        | {"calibration": _integers(s.calibration_rows)},
        "arrays": s.arrays,
    }
    config = {**s.config, "vae_shape": s.vae.shape.state(), "conditioner_shape": None}
    config |= {"ships": "", "predictor": None, "calibration": None}
    if s.conditioner is not None:
        parts[CONDITIONER] = plain_weights(s.conditioner)
        config["conditioner_shape"] = s.conditioner.shape.state()
    if s.symmetry is not None:
        parts["symmetry"] = {n: torch.from_numpy(np.array(v)) for n, v in s.symmetry.arrays().items()}
    if s.predictor is not None:
        parts[f"predictors.{s.predictor.name}"] = plain_weights(s.predictor)
        config |= {"ships": s.predictor.name, "predictor": s.predictor.config}
    if s.calibration is not None:
        parts["calibration"] = {"residual_std": s.calibration.residual_std}
        names = ("factor", "coverage", "num_rows", "reason", "over")
        config["calibration"] = {name: getattr(s.calibration, name) for name in names}
    state = {f"{part}.{key}": value for part, found in parts.items() for key, value in found.items()}
    normalization = {"field_mean": s.basis.field_mean.tolist(), "field_std": s.basis.field_std.tolist()}
    return Checkpoint(PACKAGE, KIND, plain_tree(config), normalization, state)


def _integers(rows: np.ndarray) -> torch.Tensor:
    return torch.tensor(rows.tolist(), dtype=torch.int64)


def write_surrogate(
    folder: Path, surrogate: Surrogate, beaten: Mapping[str, Predictor] | None = None
) -> Path:
    """Write SimulGen-VAE into `folder`, and LatentConditioner when there is one; return the first.

    `beaten` are fitted predictors that do not ship; they are kept beside it for evaluations.
    """
    checkpoint = checkpoint_of(surrogate)
    checkpoints.save(folder / MODEL, checkpoint)
    if surrogate.conditioner is not None:
        weights = plain_weights(surrogate.conditioner)
        alone = Checkpoint(PACKAGE, CONDITIONER_KIND, checkpoint.config, checkpoint.normalization, weights)
        checkpoints.save(folder / CONDITIONER_FILE, alone)
    if beaten is not None:
        write_candidates(folder, surrogate, beaten)
    return folder / MODEL


def write_candidates(folder: Path, surrogate: Surrogate, fitted: Mapping[str, Predictor]) -> Path:
    """Keep candidates that do not ship in `folder`, so that an evaluation need not fit them again."""
    state: Weights = {}
    configs = {}
    for name, predictor in fitted.items():
        weights = plain_weights(predictor)
        if sum(t.numel() * t.element_size() for t in weights.values()) <= MOST_CANDIDATE_BYTES:
            configs[name] = predictor.config
            state |= {f"{name}.{key}": value for key, value in weights.items()}
    config = plain_tree({"vae": content_hash(plain_weights(surrogate.vae)), "predictors": configs})
    checkpoints.save(folder / CANDIDATES_FILE, Checkpoint(PACKAGE, CANDIDATES_KIND, config, {}, state))
    return folder / CANDIDATES_FILE


def read_candidates(model_path: Path, surrogate: Surrogate) -> dict[str, Predictor]:
    """Return the candidates kept beside a deliverable, by name; none when they belong to another training."""
    path = model_path.parent / CANDIDATES_FILE
    if not path.is_file():
        return {}
    try:
        found = checkpoints.load(path, package=PACKAGE, kinds=[CANDIDATES_KIND])
        if found.config["vae"] != content_hash(plain_weights(surrogate.vae)):
            return {}
        parts = {"basis": surrogate.basis, "vae": surrogate.vae, "conditioner": surrogate.conditioner}
        fitted = {}
        for name, config in found.config["predictors"].items():
            fitted[name] = build_predictor(config, **parts)
            fitted[name].load_state_dict(part_of(found.state_dict, name))
            fitted[name].eval().requires_grad_(False)
    except (DataError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        get_logger().warning("warning: %s: cannot be used (%s); its candidates are fitted again", path, error)
        return {}
    return fitted


def find_model(path: str | Path) -> Path:
    """Return the deliverable that `path` means: the file, its folder, or the folder of the run.

    Raises:
        DataError: there is none; says what was searched.
    """
    path = Path(path)
    places = [path, path / MODEL, path / FOLDER / MODEL]
    for place in places:
        if place.is_file():
            return place
    searched, near = ", ".join(map(str, places)), None if path.exists() else nearest(path)
    raise DataError(
        f"{path}: no trained model; searched {searched}{f', the nearest is {near}' if near else ''}; train "
        "one with scripts/simulgen_vae/train.py"
    )


def read_surrogate(path: str | Path) -> Surrogate:
    """Read a deliverable, ready for inference on the CPU.

    Raises:
        DataError: missing, damaged, incomplete, or of another package or kind.
    """
    path = find_model(path)
    found = checkpoints.load(path, package=PACKAGE, kinds=[KIND])
    try:
        return _build(found.state_dict, found.config)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: its parts do not fit together ({first}); train it again") from error


def _build(state: Weights, config: dict[str, Any]) -> Surrogate:
    basis = Basis.from_dict(part_of(state, "basis"))
    vae = build_vae(config["vae_shape"], part_of(state, VAE))
    conditioner = predictor = calibration = None
    if config["conditioner_shape"] is not None:
        conditioner = build_conditioner(config["conditioner_shape"], part_of(state, CONDITIONER))
    if config["ships"]:
        predictor = build_predictor(config["predictor"], basis=basis, vae=vae, conditioner=conditioner)
        predictor.load_state_dict(part_of(state, f"predictors.{config['ships']}"))
        predictor.eval().requires_grad_(False)
    if config["calibration"] is not None:
        calibration = Calibration(state["calibration.residual_std"], **config["calibration"])
    rows = {name: value.numpy() for name, value in part_of(state, "split").items()}
    symmetry = {name: value.numpy() for name, value in part_of(state, "symmetry").items()}
    return Surrogate(
        config=config,
        basis=basis,
        vae=vae,
        conditioner=conditioner,
        predictor=predictor,
        calibration=calibration,
        split=Split(**{name: rows[name] for name in PARTS}),
        calibration_rows=rows["calibration"],
        arrays=part_of(state, "arrays"),
        symmetry=Symmetry.from_arrays(symmetry, "the model") if symmetry else None,
    )


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an npy file atomically, without pickle."""
    with atomic_path(path, needed_bytes=values.nbytes) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def write_latents(folder: Path, z: torch.Tensor, h: torch.Tensor) -> None:
    """Write latent_vectors.npy [N, nz] and xs.npy [N, K, nh], float32, rows in the order of the data."""
    save_array(folder / "latent_vectors.npy", z.float().numpy())
    save_array(folder / "xs.npy", h.float().numpy())


def write_losses(path: Path, sample_id: tuple[str, ...], codes: np.ndarray, errors: torch.Tensor) -> None:
    """Write a line a sample: id, part of the split, relative L2 of its reconstruction."""
    names = (*PARTS, "calibration")
    lines = ["sample\tsplit\trelative_l2"]
    for name, code, error in zip(sample_id, codes, errors.tolist(), strict=True):
        lines.append(f"{name}\t{names[code]}\t{error:.6e}")
    write_text(path, "\n".join(lines) + "\n")
