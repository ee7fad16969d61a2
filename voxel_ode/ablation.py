"""A trained network without some of its inputs, to see what they give."""

from __future__ import annotations

from dataclasses import replace

import torch

from common import device as devices
from common.errors import UserError
from voxel_ode.convolutions import backends_of, set_backends
from voxel_ode.fields import Fields
from voxel_ode.loading import Model
from voxel_ode.model import FLUX_DYNAMIC, StaticFeatures, VoxelAutoRegressor

_FLOW_CHANNELS = FLUX_DYNAMIC - 2  # the last dynamic inputs: change by the flow, inflow number


class WithoutFlow(VoxelAutoRegressor):
    """The network with the flow's channels and the wells' source at zero; P - P0 and T - T0 stay."""

    def static_features(self, fields: Fields, *, once: bool = True) -> StaticFeatures:
        """Return what does not change, for wells whose source is not told."""
        silent = replace(fields, well_source=torch.zeros_like(fields.well_source))
        return super().static_features(silent, once=once)

    def _dynamic_inputs(self, fixed: StaticFeatures, now: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, change = super()._dynamic_inputs(fixed, now)
        zeros = torch.zeros_like(inputs[:, -_FLOW_CHANNELS:])
        return torch.cat([inputs[:, :-_FLOW_CHANNELS], zeros], dim=1), torch.zeros_like(change)


def without_flux(model: Model) -> Model:
    """Return the model with the same weights that is told nothing of the flow.

    Raises:
        UserError: it was never told.
    """
    if not model.network.config.flux_inputs:
        raise UserError(
            f"--ablate flux: {model.path} was trained with --flux_inputs off, so there is nothing to leave "
            "out; drop --ablate, or name a network trained with them"
        )
    network = WithoutFlow(model.network.config, model.normalizer)
    network.load_state_dict(model.network.state_dict())
    devices.channels_last(network)
    set_backends(network, backends_of(model.network))
    return replace(model, network=network.to(model.device).eval())
