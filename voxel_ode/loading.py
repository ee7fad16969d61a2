"""A trained network with all that its checkpoint says: architecture, numbers of the normaliser, routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import checkpoint as checkpoints
from common import device as devices
from common.checkpoint import Checkpoint
from common.device import Precision, resolve_precision
from common.errors import DataError, UserError
from common.run import Layout
from voxel_ode.convolutions import BACKENDS, backends_of, set_backends
from voxel_ode.dataset import read_stats
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim
from voxel_ode.train import KIND, PACKAGE, model_config


@dataclass(frozen=True)
class Model:
    """A network ready to predict.

    Attributes:
        network: in evaluation mode on `device`.
        normalizer: of its training data.
        path: of the checkpoint.
        sha256: of the weights.
        device: where it computes.
        precision: of the arithmetic.
        step: optimizer steps of its training.
    """

    network: VoxelAutoRegressor
    normalizer: Normalizer
    path: Path
    sha256: str
    device: torch.device
    precision: Precision
    step: int = 0

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    def require_fit(self, sim: PreppedSim) -> None:
        """Raise DataError unless the network can read a simulation."""
        wanted = len(self.normalizer.param_mean)
        if len(sim.params) != wanted:
            raise DataError(
                f"{sim.path}: {len(sim.params)} parameters, {self.path.name} was trained with {wanted}; use "
                "simulations of the same study"
            )
        if self.network.config.flux_inputs and sim.cell_size_m is None:
            raise DataError(
                f"{sim.path}: does not say how large its cells are (attribute cell_size_m), which the flux "
                f"inputs of {self.path.name} need; add it, or train with --flux_inputs off"
            )


def find_checkpoint(path: str | Path) -> Path:
    """Return `path`; of the folder of a training or of its checkpoints the best one, and say which that is.

    Raises:
        DataError: the folder has none; names what was searched.
    """
    names = (f"{Layout().checkpoints}/{Layout().best}", Layout().best)
    advice = "name the checkpoint, or the folder of a training that has been evaluated once"
    return checkpoints.file_of_run(path, names, advice)


def load(path: str | Path, device: str | torch.device = "cpu", *, precision: str = "auto") -> Model:
    """Return the network of a checkpoint; nothing about it comes from flags.

    On a CPU convolutions take the routes that the training chose, so that the same file gives the same
    numbers; "fp32" avoids those in bf16.

    Args:
        path: of the checkpoint, or the folder of a training.
        device: where to compute.
        precision: auto, fp32, bf16 or fp16.

    Raises:
        DataError: the file is missing, damaged, of another package, or its weights do not fit its config.
    """
    path = find_checkpoint(path)
    found = checkpoints.load(path, package=PACKAGE, kinds=(KIND,))
    try:
        normalizer = Normalizer.from_dict(found.normalization)
        network = VoxelAutoRegressor(model_config(found.config), normalizer)
        network.load_state_dict(found.state_dict)
    except (KeyError, RuntimeError, TypeError, ValueError, DataError) as error:
        first = str(error).split("\n")[0]
        raise DataError(f"{path}: its weights do not fit its config ({first}); use another file") from error
    device = devices.resolve_device(str(device))
    devices.channels_last(network)
    set_backends(network, _routes(network, found, device, precision))
    return Model(
        network=network.to(device).eval(),
        normalizer=normalizer,
        path=path,
        sha256=checkpoints.content_hash(found.state_dict),
        device=device,
        precision=resolve_precision("fp32" if _keeps_routes(device, precision) else precision, device),
        step=found.step,
    )


def _keeps_routes(device: torch.device, precision: str) -> bool:
    return device.type == "cpu" and precision == "auto"


def _routes(
    network: VoxelAutoRegressor, found: Checkpoint, device: torch.device, precision: str
) -> dict[str, str]:
    """Return how each convolution is computed: as in training, where this machine is fast at it."""
    names = backends_of(network)
    if device.type != "cpu":
        return dict.fromkeys(names, "native")
    learned: dict[str, Any] = found.training.get("backends", {})
    can_bf16 = precision != "fp32" and devices.has_fast_bf16(device)
    routes = {}
    for name in names:
        route = str(learned.get(name, "native"))
        route = route if route in BACKENDS else "native"
        routes[name] = "gemm" if route == "bf16" and not can_bf16 else route
    return routes


def require_same(models: Sequence[Model], **expected: int | None) -> None:
    """Refuse flags that differ from the checkpoints' architecture.

    Args:
        models: loaded ones.
        **expected: name of an entry of the architecture -> the flag's value, None when it was not given.

    Raises:
        UserError: a value differs; both are named.
    """
    for model in models:
        for name, value in expected.items():
            found = getattr(model.network.config, name)
            if value is not None and value != found:
                raise UserError(
                    f"--{name} {value}: {model.path} was trained with {found}; leave the flag out, the "
                    "checkpoint tells"
                )


def require_same_stats(models: Sequence[Model], stats_path: Path) -> None:
    """Refuse statistics that are not those a checkpoint was trained with.

    Raises:
        DataError: a number or the data set's hash differs, or the file cannot be read.
    """
    normalizer = Normalizer.from_stats(read_stats(stats_path), stats_path)
    for model in models:
        other = model.normalizer.difference(normalizer)
        if not other and model.normalizer.dataset_id != normalizer.dataset_id:
            other = "dataset_id"
        if other:
            raise DataError(
                f"{stats_path}: differs in {other} from what {model.path} was trained with; name the "
                "stats.json of its training data, or leave --stats_path out"
            )
