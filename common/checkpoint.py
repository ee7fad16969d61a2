"""One checkpoint schema for all packages: write it whole, read it safely, find the newest, export weights.

The only file that calls torch.save and torch.load. A checkpoint holds tensors, str, int, float, bool, list
and dict only, loads with `weights_only=True`, and carries a SHA-256 of its content because a flipped bit is
otherwise not noticed. `torch.load(path)["state_dict"]` gives the weights to anyone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import distributed
from common.errors import DataError
from common.files import atomic_path, temporary_path, write_bytes
from common.log import get_logger

FORMAT = "strata-checkpoint-1"
Tree = Any  # tensors and plain values in nested dicts and lists


@dataclass
class Checkpoint:
    """Everything a run or a user needs of a trained model.

    Attributes:
        package: which of the five it belongs to.
        kind: which network of that package, for example "infer".
        config: the resolved configuration, as plain values.
        normalization: state of the normalisers.
        state_dict: weights under plain names, never `module.` or `_orig_mod.`.
        training: optimizers, schedules, scaler, EMA, best score; {} in an exported model.
        step: optimizer steps done.
        epoch: epochs done.
        rng: global generator states, one entry a rank.
    """

    package: str
    kind: str
    config: dict[str, Any]
    normalization: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    rng: list[dict[str, torch.Tensor]] = field(default_factory=list)


_KINDS: dict[str, type[Any]] = {
    "package": str,
    "kind": str,
    "config": dict,
    "normalization": dict,
    "state_dict": dict,
    "training": dict,
    "step": int,
    "epoch": int,
    "rng": list,
}


def plain_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of `module` on the CPU, without the prefixes of DDP and compile.

    On the CPU they share memory with the module, so that a checkpoint which holds them twice (as weights and
    as the averaged network of the training state) stores them once.
    """
    return {name: value.detach().cpu() for name, value in distributed.unwrap(module).state_dict().items()}


def content_hash(tree: Tree) -> str:
    """Return the SHA-256 of a tree of tensors and plain values; the order of keys does not count."""
    digest = hashlib.sha256()
    _feed(digest, tree)
    return digest.hexdigest()


def _feed(digest: Any, tree: Tree) -> None:
    if isinstance(tree, torch.Tensor):
        data = tree.detach().cpu().contiguous()
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(tree, dict):
        for key in sorted(tree, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, tree[key])
    elif isinstance(tree, list | tuple):
        digest.update(f"[{len(tree)}".encode())
        for value in tree:
            _feed(digest, value)
    else:
        digest.update(repr(tree).encode())


def plain_tree(tree: Tree) -> Tree:
    """Return `tree` with only what a checkpoint may hold; paths become strings, tuples lists, tensors CPU.

    Raises:
        TypeError: a value of another type, which `weights_only=True` would refuse to load.
    """
    if isinstance(tree, torch.Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {plain_tree(key): plain_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain_tree(value) for value in tree]
    if isinstance(tree, Path):
        return str(tree)
    if tree is None or isinstance(tree, bool):
        return tree
    for kind in (str, int, float):  # their subclasses (numpy.float64, enums) would be refused on loading
        if isinstance(tree, kind):
            return kind(tree)
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__}: {tree!r}")


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` atomically.

    Raises:
        DataError: the disk is full or a file-size limit was hit; the old file is untouched.
        UserError: the folder cannot be written.
    """
    content = plain_tree({f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)})
    document = {"format": FORMAT, "sha256": content_hash(content), "torch": str(torch.__version__), **content}
    with atomic_path(path, needed_bytes=_tensor_bytes(content)) as temporary:
        torch.save(document, temporary)


def _tensor_bytes(tree: Tree) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(_tensor_bytes(value) for value in values)


def load_document(path: str | Path) -> dict[str, Any]:
    """Return what a `.pt`, `.pth` or `.ckpt` file holds, without ever executing code from it.

    Raises:
        DataError: missing, a folder, cut off, not a torch file, or it asks for code to be run.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a checkpoint file; name a file in it")
    if not path.exists():
        raise DataError(f"{path}: no such checkpoint file; check the path")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "no torch file"
        raise DataError(
            f"{path}: refused, it holds something other than weights and plain values ({reason}); "
            "expected a file written by torch.save of tensors, or by this project"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises EOFError, RuntimeError, KeyError ... for damaged files
        size = path.stat().st_size
        raise DataError(
            f"{path}: not a readable checkpoint ({size} bytes: {_cause(path, error)}); "
            "use an older checkpoint, or copy the file again"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds a {type(document).__name__}, expected a dictionary of weights")
    return document


def _cause(path: Path, error: Exception) -> str:
    if path.stat().st_size == 0:
        return "empty"
    return "not a torch file" if not zipfile.is_zipfile(path) else str(error).split("\n")[0] or "cut off"


def file_of_run(path: str | Path, names: Sequence[str], advice: str) -> Path:
    """Return the model file that `path` means: itself, or of a run's folder the first of `names` in it.

    What is taken of a folder is said.

    Args:
        path: a file or a folder.
        names: of files below the folder, the preferred one first.
        advice: what to do when the folder has none of them.

    Raises:
        DataError: a folder that has none of them; the message names all.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path}: is a folder, expected in it {' or '.join(names)}; {advice}")
    get_logger().info(f"{path}: is a folder, taking {found.relative_to(path)}")
    return found


def load(path: str | Path, *, package: str | None = None, kinds: Iterable[str] = ()) -> Checkpoint:
    """Read a checkpoint of this project, or weights that it exported as `.safetensors`.

    Args:
        path: the file.
        package: refuse another package's.
        kinds: refuse a kind outside these, when given.

    Raises:
        DataError: unreadable, of another format, package or kind (both are named), or damaged.
    """
    if Path(path).suffix == ".safetensors":
        return load_safetensors(path, package=package, kinds=kinds)
    document = load_document(path)
    found = document.get("format")
    if found != FORMAT:
        what = f"format {found!r}" if isinstance(found, str) else f"keys {sorted(map(str, document))[:5]}"
        raise DataError(f"{path}: {what}, expected format {FORMAT!r}; it is no checkpoint of this version")
    names = [f.name for f in dataclasses.fields(Checkpoint)]
    missing = [name for name in names if name not in document]
    if missing:
        raise DataError(f"{path}: keys {missing} are missing; use an older checkpoint")
    content = {name: document[name] for name in names}
    wrong = [name for name, kind in _KINDS.items() if not isinstance(content[name], kind)]
    if wrong or not all(isinstance(v, torch.Tensor) for v in content["state_dict"].values()):
        raise DataError(f"{path}: {wrong or ['state_dict']} are of a wrong type; use an older checkpoint")
    _require_owner(path, content["package"], content["kind"], package, tuple(kinds))
    if content_hash(content) != document.get("sha256"):
        raise DataError(f"{path}: damaged, its content differs from its SHA-256; use an older checkpoint")
    return Checkpoint(**content)


def _require_owner(
    path: str | Path, package: str, kind: str, wanted: str | None, kinds: Sequence[str]
) -> None:
    """Raise DataError, naming both, unless the package is `wanted` and the kind one of `kinds`."""
    if wanted is not None and package != wanted:
        raise DataError(
            f"{path}: checkpoint of package {package!r}, expected {wanted!r}; use the scripts of {package}"
        )
    if kinds and kind not in kinds:
        raise DataError(f"{path}: checkpoint is kind {kind!r}, expected {' or '.join(kinds)}")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically, where possible without writing it twice."""
    temporary = temporary_path(target.with_name(f"{target.name}.link"))
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        write_bytes(target, source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)  # a rename over another name of the same file leaves it


def newest_first(folder: str | Path, pattern: str) -> list[Path]:
    """Return the files of `folder` that match `pattern`, by the last number in their names."""

    def number(path: Path) -> int:
        digits = "".join(c if c.isdecimal() else " " for c in path.stem).split()
        return int(digits[-1]) if digits else -1

    return sorted(Path(folder).glob(pattern), key=number, reverse=True)


def export_safetensors(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write weights, config, kind and normalisation (no optimizer) as one safetensors file.

    The metadata holds strings: `format`, `package`, `kind`, `config` and `normalization` as JSON, `step`, and
    the `sha256` of the weights.
    """
    from safetensors.torch import save as serialised

    weights = {name: value.contiguous() for name, value in checkpoint.state_dict.items()}
    metadata = {
        "format": FORMAT,
        "package": checkpoint.package,
        "kind": checkpoint.kind,
        "config": json.dumps(plain_tree(checkpoint.config), sort_keys=True),
        "normalization": json.dumps(plain_tree(checkpoint.normalization), sort_keys=True),
        "step": str(checkpoint.step),
        "sha256": content_hash(weights),
    }
    with atomic_path(path, needed_bytes=_tensor_bytes(weights)) as temporary:
        # Written here, not by the library, whose files only their owner may read.
        temporary.write_bytes(serialised(weights, metadata=metadata))


def load_safetensors(
    path: str | Path, *, package: str | None = None, kinds: Iterable[str] = ()
) -> Checkpoint:
    """Read what `export_safetensors` wrote.

    Raises:
        DataError: unreadable, of another format, package or kind, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such weights file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}); copy the file again") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}; export it again")
    missing = sorted({"package", "kind", "config", "normalization", "step"} - set(metadata))
    if missing:
        raise DataError(f"{path}: metadata {missing} are missing; export it again")
    _require_owner(path, metadata["package"], metadata["kind"], package, tuple(kinds))
    if content_hash(weights) != metadata.get("sha256"):
        raise DataError(f"{path}: weights differ from their SHA-256, the file is damaged; copy it again")
    try:
        config, normalization = json.loads(metadata["config"]), json.loads(metadata["normalization"])
        step = int(metadata["step"])
        if not isinstance(config, dict) or not isinstance(normalization, dict):
            raise ValueError("config or normalization is no object")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: metadata cannot be read ({error}); export it again") from error
    return Checkpoint(metadata["package"], metadata["kind"], config, normalization, weights, step=step)
