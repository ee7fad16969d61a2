"""Weights of a fault_seg network from any file: checkpoints, exports, and bare state dicts of other tools."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint
from common.errors import DataError
from common.log import get_logger
from fault_seg.model import HEADS, build_network

ACCEPTED = (".ckpt", ".pt", ".pth", ".safetensors")
OF_A_RUN = ("best.ckpt", "last.ckpt")  # in the folder of a training, the preferred one first
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")


def find_weights(path: str | Path) -> Path:
    """Return the file that a model flag means; of a run's folder its best checkpoint, else its last one.

    Raises:
        DataError: nothing is there, or a folder without either.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such checkpoint file or folder of a training; check the path")
    return checkpoints.file_of_run(path, OF_A_RUN, "name the --out of a train.py run, or a file")


def read_weights(path: str | Path) -> Checkpoint:
    """Return the checkpoint that `path` means; `config` names network and heads, `kind` infer or refine.

    Of a file without configuration (a bare state dict, or one under the key state_dict) they are found from
    the names and shapes of its tensors, with a notice.

    Raises:
        DataError: the file is missing, damaged, of another package or format, or fits no layout.
    """
    path = find_weights(path)
    if path.suffix not in ACCEPTED:
        raise DataError(
            f"{path}: suffix {path.suffix or 'none'}, expected weights as {', '.join(ACCEPTED)}; save the "
            "state_dict of its network as .pth with torch, then run scripts/fault_seg/export.py"
        )
    if path.suffix == ".safetensors":
        return checkpoints.load_safetensors(path, package="fault_seg")
    document = checkpoints.load_document(path)
    if "format" in document:
        return checkpoints.load(path, package="fault_seg")
    weights = _plain(document.get("state_dict", document))
    if not weights:
        raise DataError(
            f"{path}: keys {sorted(map(str, document))[:5]} and no tensors, expected a checkpoint or the "
            "state_dict of a network; save it again"
        )
    layout, kind, heads = _recognised(path, weights)
    get_logger().info(f"{path}: no configuration; by its tensors network {layout}, {kind}, {' '.join(heads)}")
    return Checkpoint("fault_seg", kind, {"network": layout, "heads": list(heads)}, {}, weights)


def _plain(tree: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict without the prefixes that wrappers add; {} when it is none."""
    if not isinstance(tree, dict) or not all(isinstance(v, torch.Tensor) for v in tree.values()):
        return {}
    weights = {str(name): value for name, value in tree.items()}
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _layouts() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield every (network, kind, heads) that there is."""
    for network in ("hr", "mtl"):
        yield network, "refine", HEADS
        for count in (3, 2, 1):
            yield from ((network, "infer", heads) for heads in itertools.combinations(HEADS, count))
    yield "unet", "infer", ("fault",)


def _recognised(path: Path, weights: dict[str, torch.Tensor]) -> tuple[str, str, tuple[str, ...]]:
    """Return the layout with exactly these names and shapes.

    Raises:
        DataError: there is none; the message names a tensor that the nearest one lacks or has otherwise.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    nearest: tuple[int, str] | None = None
    for network, kind, heads in _layouts():
        with torch.device("meta"):
            state = build_network(network, kind, heads).state_dict()
        wanted = {name: tuple(value.shape) for name, value in state.items()}
        wrong = sorted(set(found.items()) ^ set(wanted.items()))
        if not wrong:
            return network, kind, heads
        if nearest is None or len(wrong) < nearest[0]:
            name = wrong[0][0]
            about = f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
            nearest = len(wrong), f"nearest {network} {kind} {' '.join(heads)}: {about}"
    assert nearest is not None
    raise DataError(
        f"{path}: {len(weights)} tensors that fit no network ({nearest[1]}, {nearest[0]} differ in all); "
        "use a checkpoint of train.py, which says what it is"
    )
