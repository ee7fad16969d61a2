"""Hand-made batches and networks for the tests of model and training, no files involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common.noise import torch_stream
from voxel_ode.config import ModelConfig
from voxel_ode.fields import Fields
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.schema import STATIC_NAMES
from voxel_ode.units import YEAR

NUM_PARAMS = 26
NUM_STATIC = len(STATIC_NAMES)
SMALL = {"receptive_field_radius": 1, "base_channels": 6, "depth": 1}


def make_normalizer(num_params: int = NUM_PARAMS) -> Normalizer:
    """Return plausible numbers for states of 200 bar and 90 deg C."""
    kinds = {"FaultId": "binary", "PermX": "log10", "PermY": "log10", "PermZ": "log10"}
    return Normalizer.from_dict(
        {
            "static_channels": list(STATIC_NAMES),
            "static_kinds": [kinds.get(name, "identity") for name in STATIC_NAMES],
            "static_mean": [0.0] * NUM_STATIC,
            "static_std": [1.0] * NUM_STATIC,
            "grid_mean": [210.0, 90.0],
            "grid_std": [10.0, 8.0],
            "delta_rms": [0.5, 1.5],
            "scalar_mean": [16.0, 17.0, 36.0, 4.0, 4.0],
            "scalar_std": [0.5, 0.5, 1.0, 0.4, 0.4],
            "scalar_log1p": [1.0] * 5,
            "params_raw": True,
            "param_mean": [0.5] * num_params,
            "param_std": [0.3] * num_params,
            "param_min": [0.0] * num_params,
            "param_max": [1.0] * num_params,
            "channel_range": {},
            "dataset_id": "made by hand",
        }
    )


def make_model(**changes: Any) -> VoxelAutoRegressor:
    """Return a small network with random weights everywhere, so that nothing is zero by its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VoxelAutoRegressor(ModelConfig(**{**SMALL, **changes}), make_normalizer())
    randomize(model)
    return model


def randomize(model: torch.nn.Module, seed: int = 0, spread: float = 0.3) -> None:
    """Add noise to every weight."""
    generator = torch_stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                spread * torch.randn(parameter.shape, generator=generator) * parameter_scale(parameter)
            )


def parameter_scale(parameter: torch.Tensor) -> float:
    """Return what keeps the response of a layer with such weights near 1."""
    return 1.0 if parameter.dim() < 2 else parameter[0].numel() ** -0.5


def make_batch(
    shape: Sequence[int] = (7, 6, 5), *, batch: int = 2, years: int = 1, seed: int = 0, share: float = 0.8
) -> dict[str, torch.Tensor]:
    """Return a collated batch as the data set gives, with random geology and a drifting state.

    Args:
        shape: (D, H, W).
        batch: samples.
        years: K.
        seed: of everything.
        share: of active cells.
    """
    g = torch_stream(seed, "batch")
    b, cells = batch, tuple(shape)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g)

    active = (torch.rand(b, 1, *cells, generator=g) < share).float()
    flow = active * (torch.rand(b, 1, *cells, generator=g) < 0.9).float()
    masks = torch.cat([active, flow, active - flow], dim=1)
    domains = torch.cat([flow, active], dim=1)
    states = [normal(b, 2, *cells) * domains]
    for _ in range(years):
        states.append(states[-1] + 0.1 * normal(b, 2, *cells) * domains)
    scalars_raw = torch.rand(b, years + 1, 5, generator=g) * torch.tensor([1e7, 3e7, 1e15, 60.0, 60.0])
    features = torch.rand(b, years + 1, 6, generator=g) * 5 + torch.tensor([40.0, 90, 220, 200, 90, 210])
    return {
        "static": normal(b, NUM_STATIC, *cells) * active,
        "states": torch.stack(states, dim=1),
        "masks": masks,
        "loss_mask": torch.ones(b, *cells),
        "params": torch.rand(b, NUM_PARAMS, generator=g),
        "scalars": normal(b, years, 5),
        "scalars_raw": scalars_raw,
        "well_features": features,
        "well_rates": torch.rand(b, 2, generator=g) * 60,
        "well_source": torch.where(torch.rand(b, 1, *cells, generator=g) < 0.05, 5.0, 0.0) * flow,
        "rock": 10 ** (1.5 + 0.4 * normal(b, 3, *cells)) * flow,
        "porosity": (0.1 + 0.02 * normal(b, 1, *cells)).clamp(0.01, 0.3) * flow,
        "initial": states[0] - 0.1 * normal(b, 2, *cells) * domains,
        "origin": torch.zeros(b, 3, dtype=torch.int64),
        "grid_shape": torch.tensor([cells] * b),
        "cell_size": torch.tensor([[10.0, 50.0, 50.0]] * b),
        "dt_s": torch.full((b,), YEAR),
        "injection_c": torch.full((b,), 40.0),
        "wells_complete": torch.ones(b, dtype=torch.bool),
        "t": torch.zeros(b, dtype=torch.int64),
    }


def make_fields(shape: Sequence[int] = (7, 6, 5), **changes: Any) -> Fields:
    """Return the fields of one step of `make_batch`."""
    return Fields.from_batch(make_batch(shape, **changes))


def part_of(fields: Fields, box: tuple[slice, slice, slice]) -> Fields:
    """Return the cells of `box` of whole fields, with their origin."""
    values = dict(vars(fields))
    for name, value in values.items():
        if value.dim() == 5:
            values[name] = value[(slice(None), slice(None), *box)]
    values["origin"] = fields.origin + torch.tensor([s.start for s in box])
    return Fields(**values)
