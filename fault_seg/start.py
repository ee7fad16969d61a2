"""What a training starts from: weights of another model, fixed parts, the network that makes estimates."""

from __future__ import annotations

import torch
from torch import nn

from common.errors import DataError
from fault_seg.config import TrainConfig
from fault_seg.infer import read_network
from fault_seg.model import HEADS


def start_from(network: nn.Module, config: TrainConfig) -> None:
    """Load the weights of `--init`.

    Raises:
        DataError: they are of another layout or have other heads.
    """
    found, _ = read_network(config.init)
    name, heads = found.config["network"], tuple(found.config["heads"])
    if (name, found.kind, heads) != (config.network, config.task, config.heads):
        raise DataError(
            f"{config.init}: network {name} {found.kind} with heads {' '.join(heads)}, "
            f"expected {config.network} {config.task} with {' '.join(config.heads)}; use its flags"
        )
    network.load_state_dict(found.state_dict)


def freeze(network: nn.Module) -> list[nn.Module]:
    """Fix everything before the heads; return the modules whose statistics must stay as well."""
    fixed = []
    for name, part in network.named_children():
        if not name.endswith("_head") and not name.startswith(("decoder", "subdecoder", "out")):
            part.requires_grad_(False)
            fixed.append(part)
    return fixed


def inference_network(config: TrainConfig, device: torch.device) -> nn.Module | None:
    """Return the network of `--init_infer`, None without one.

    Raises:
        DataError: it is of kind refine or lacks a head.
    """
    if not config.init_infer:
        return None
    found, network = read_network(config.init_infer)
    if found.kind != "infer" or set(found.config["heads"]) != set(HEADS):
        raise DataError(
            f"{config.init_infer}: checkpoint is kind {found.kind} with heads "
            f"{' '.join(found.config['heads'])}, expected infer with {' '.join(HEADS)}"
        )
    return network.eval().requires_grad_(False).to(device)
