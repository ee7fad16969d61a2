"""From a folder of raw simulations to prepped files, patch indices, statistics and a manifest.

Everything is a function of the raw files and the flags: an interrupted run that is started again, or one with
more processes, ends with the same bytes. A prepped file that fits its source and the flags is kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from joblib import Parallel, delayed

from common.errors import DataError, UserError
from common.files import FolderLock, remove_stale_temporaries, require_writable, write_json
from common.log import get_logger
from common.run import BasicOptions
from voxel_ode.config_prep import PrepConfig
from voxel_ode.index import PatchIndex, index_of, joined, write_jsonl, write_npz
from voxel_ode.prep_file import content_id, hash_of, is_done, sha256_of, shrunk_patch, write_prepped
from voxel_ode.prepped import SUFFIX, open_prepped
from voxel_ode.raw import RawFile, find_raw, run_index
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.stats import FileStats, file_stats, stats_dict

SPLITS = ("train", "val", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What a look at a raw file said; `error` is empty when the file is valid so far."""

    path: Path
    error: str = ""
    sha256: str = ""
    units: str = ""
    param_names: tuple[str, ...] = ()
    num_states: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def prep_data(config: PrepConfig, options: BasicOptions) -> dict[str, Any]:
    """Prepare `config.input_root` into `config.out_root`; return a summary of plain values.

    Raises:
        UserError: too few simulations for the split, or the folder holds other data without --overwrite.
        DataError: mixed units, no usable file, or (strict) a corrupt one.
    """
    root = config.out_root
    files, others = find_raw(cast(Path, config.input_root))
    if others:
        get_logger().info(f"{config.input_root}: {len(others)} files without a run number ignored")
    _split(config, [Found(path) for path in files])  # a hopeless split is told before anything is read
    found = _usable(config, parallel(config.workers, look, ((path, config) for path in files)))
    splits = _split(config, found)
    _say_shrunk(config, found)
    summary: dict[str, Any] = {name: len(files) for name, files in splits.items()}
    summary["units"] = found[0].units
    if options.dry_run:
        return summary
    require_writable(root)
    lock = FolderLock(root)
    try:
        remove_stale_temporaries(root)
        _make_way(config, splits, options.overwrite)
        splits = _write_files(config, splits)
        indices = _write_indices(config, splits)
        stats = _write_stats(config, splits)
        write_json(root / "manifest.json", manifest(config, splits, stats["dataset_id"]))
    finally:
        lock.release()
    summary |= {name: len(files) for name, files in splits.items()}
    summary["patches"] = {name: len(index) for name, index in indices.items()}
    summary["delta_rms"] = stats["delta_rms"]
    return summary


def parallel(workers: int, function: Callable[..., T], jobs: Iterable[tuple[Any, ...]]) -> list[T]:
    """Return function(*job) for each job, in their order, on `workers` processes (0 or 1: this one)."""
    work = Parallel(n_jobs=max(1, workers))
    return cast(list[T], work(delayed(function)(*job) for job in jobs))


def open_raw(path: Path, config: PrepConfig) -> RawFile:
    """Open a raw file as the flags say."""
    return RawFile(path, units=config.units, dt_days=config.dt_days, max_memory_gb=config.max_memory)


def look(path: Path, config: PrepConfig) -> Found:
    """Return what can be said of a raw file without reading its output states."""
    try:
        with open_raw(path, config) as raw:
            return Found(
                path,
                sha256=sha256_of(path),
                units=raw.units,
                param_names=tuple(raw.param_names),
                num_states=raw.t_valid,
                shape=raw.shape,
                warnings=raw.inputs.warnings,
                ignored=tuple(raw.ignored),
            )
    except DataError as error:
        return Found(path, error=str(error))


def prepared_path(root: Path, split: str, raw: Path) -> Path:
    """Return where the prepped file of a raw file lies."""
    return root / split / f"{raw.stem}{SUFFIX}"


def _usable(config: PrepConfig, found: list[Found]) -> list[Found]:
    """Return the valid files; say what is wrong with the others, or stop there when strict."""
    lengths = Counter(len(f.param_names) for f in found if not f.error)
    usual = lengths.most_common(1)[0][0] if lengths else 0
    good = []
    for f in found:
        error = f.error
        if not error and len(f.param_names) != usual:
            error = (
                f"{f.path}: Input/ParamsScalar has {len(f.param_names)} values, expected {usual} as the "
                "other files; leave it out"
            )
        for line in f.warnings:
            get_logger().warning("warning: %s", line)
        if error:
            _skip(config, error)
        else:
            good.append(f)
    if not good:
        raise DataError(f"{config.input_root}: none of {len(found)} files is usable; see the warnings above")
    ignored = sorted({name for f in good for name in f.ignored})
    if ignored:
        get_logger().info(f"Output datasets that are not used: {', '.join(ignored)}")
    for f in good:
        if f.units != good[0].units:
            raise DataError(
                f"{f.path}: in {f.units} units, {good[0].path.name} in {good[0].units} units, expected one "
                "kind in a folder; separate them, or say --units si or --units field"
            )
    return good


def _skip(config: PrepConfig, error: str) -> None:
    if config.strict:
        raise DataError(error)
    get_logger().warning("warning: left out: %s", error)


def _split(config: PrepConfig, found: Sequence[Found]) -> dict[str, list[Found]]:
    """Return the files of each split, by run index.

    Raises:
        UserError: a run is not there, or nothing is left to train on.
    """
    runs = {f.path: run_index(f.path) for f in found}
    for name in ("test_runs", "val_runs"):
        missing = sorted(set(getattr(config, name)) - set(runs.values()))
        if missing:
            raise UserError(f"--{name}: run {missing[0]} is not (or not usable) in {config.input_root}")
    explicit = set(config.test_runs) | set(config.val_runs)
    free = [f for f in found if runs[f.path] not in explicit]
    num_test = 0 if config.test_runs else config.num_test
    num_val = 0 if config.val_runs else config.num_val
    if len(free) < num_test + num_val + 1:
        n = len(free)
        test, val = min(num_test, max(0, (n - 1) // 3)), min(num_val, 1 if n > 2 else 0)
        raise UserError(
            f"{config.input_root}: {n} simulations for --num_test {num_test}, --num_val {num_val} and at "
            f"least one to train on; add simulations or use --num_test {test} --num_val {val}"
        )
    return {
        "train": free[num_test + num_val :],
        "val": [f for f in found if runs[f.path] in config.val_runs] or free[num_test : num_test + num_val],
        "test": [f for f in found if runs[f.path] in config.test_runs] or free[:num_test],
    }


def _say_shrunk(config: PrepConfig, found: Sequence[Found]) -> None:
    for shape in sorted({f.shape for f in found}):
        patch = shrunk_patch(config.patch_size, shape)
        if patch != config.patch_size:
            get_logger().info(f"patches of {config.patch_size} shrink to {patch} in grids of {shape}")


def _make_way(config: PrepConfig, splits: dict[str, list[Found]], overwrite: bool) -> None:
    """Delete prepped files of another source, flags or split when told to, refuse them otherwise.

    Other flags of the indices or statistics are refused too: a training may be using them.
    """
    root, flags = config.out_root, content_id(config)
    other = changed_flags(config)
    if other and not overwrite:
        raise UserError(
            f"{root}: was prepared with other {', '.join(f'--{name}' for name in other)}; add --overwrite to "
            "prepare it anew or choose another --out_root"
        )
    wanted = {prepared_path(root, name, f.path): f for name, files in splits.items() for f in files}
    for name in SPLITS:
        for path in sorted((root / name).glob(f"*{SUFFIX}")):
            if path in wanted and is_done(path, wanted[path].sha256, flags):
                continue
            if not overwrite:
                raise UserError(
                    f"{path}: prepared from another file, with other flags, or damaged; add --overwrite to "
                    "replace it or choose another --out_root"
                )
            path.unlink()


def _write_files(config: PrepConfig, splits: dict[str, list[Found]]) -> dict[str, list[Found]]:
    """Write the prepped files that are not there yet; return the splits without the corrupt ones."""
    jobs = [
        (f, prepared_path(config.out_root, name, f.path), config) for name in SPLITS for f in splits[name]
    ]
    errors = dict(zip((f.path for f, *_ in jobs), parallel(config.workers, write_one, jobs), strict=True))
    for error in filter(None, errors.values()):
        _skip(config, error)
    left = {name: [f for f in files if not errors[f.path]] for name, files in splits.items()}
    if not left["train"]:
        raise DataError(f"{config.input_root}: no usable simulation left to train on; see the warnings above")
    return left


def write_one(found: Found, path: Path, config: PrepConfig) -> str:
    """Prepare one file unless it is there; return what is wrong with it, "" when nothing is."""
    if is_done(path, found.sha256, content_id(config)):
        return ""
    try:
        with open_raw(found.path, config) as raw:
            write_prepped(raw, path, config, found.sha256)
    except DataError as error:
        if str(error).startswith(str(found.path)):
            return str(error)
        raise  # a full disk is no fault of the file
    return ""


def _write_indices(config: PrepConfig, splits: dict[str, list[Found]]) -> dict[str, PatchIndex]:
    indices = {}
    for name in SPLITS:
        paths = [prepared_path(config.out_root, name, f.path) for f in splits[name]]
        parts = parallel(config.workers, index_one, ((path, config) for path in paths))
        indices[name] = index = joined(parts)
        jsonl, npz = (config.out_root / f"index_{name}{suffix}" for suffix in (".jsonl", ".npz"))
        jsonl.unlink(missing_ok=True)
        npz.unlink(missing_ok=True)
        if config.index_format != "npz":
            write_jsonl(index, jsonl)
        if config.index_format != "jsonl":
            write_npz(index, npz, sha256_of(jsonl) if jsonl.is_file() else "")
    if not len(indices["train"]):
        raise UserError(f"--min_active {config.min_active}: no patch of the training files is so active")
    return indices


def index_one(path: Path, config: PrepConfig) -> PatchIndex:
    """Return the patches of one prepped file."""
    name = path.relative_to(config.out_root).as_posix()
    return index_of(open_prepped(path), name, config.patch_size, config.stride, config.min_active)


def _write_stats(config: PrepConfig, splits: dict[str, list[Found]]) -> dict[str, Any]:
    train = splits["train"]
    names = train[0].param_names
    flags = [name in config.log_transform for name in SCALAR_NAMES]
    jobs = [
        (prepared_path(config.out_root, "train", f.path), i, len(names), flags) for i, f in enumerate(train)
    ]
    total = FileStats(len(names), flags)
    for part in parallel(config.workers, file_stats, jobs):
        total.merge(part)
    stats = stats_dict(total, config.fault_encoding, names, dataset_id(config, train))
    write_json(config.out_root / "stats.json", stats)
    return stats


def dataset_id(config: PrepConfig, train: Sequence[Found]) -> str:
    """Return the hash of the training files and of the flags that statistics depend on."""
    flags = [content_id(config), sorted(config.log_transform), config.fault_encoding]
    return hash_of([flags, [f.sha256 for f in train]])


def manifest(config: PrepConfig, splits: dict[str, list[Found]], identity: str) -> dict[str, Any]:
    """Return manifest.json: flags, and each file with its hash, split, states and grid."""
    files = [
        {
            "raw": f.path.name,
            "sha256": f.sha256,
            "split": name,
            "prepped": prepared_path(Path(), name, f.path).as_posix(),
            "T_valid": f.num_states,
            "shape": list(f.shape),
        }
        for name in SPLITS
        for f in splits[name]
    ]
    return {
        "dataset_id": identity,
        "units": splits["train"][0].units,
        "flags": flags_of(config),
        "files": files,
    }


def flags_of(config: PrepConfig) -> dict[str, Any]:
    """Return the flags that the result depends on, as JSON holds them."""
    flags = dataclasses.asdict(config)
    for name in ("input_root", "out_root", "workers", "strict", "max_memory"):
        flags.pop(name)
    return cast(dict[str, Any], json.loads(json.dumps(flags)))


def changed_flags(config: PrepConfig) -> list[str]:
    """Return the flags in which a finished preparation in `out_root` differs; none when there is none."""
    path = config.out_root / "manifest.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8"))["flags"] if path.is_file() else None
        return [] if old is None else [k for k, v in flags_of(config).items() if old.get(k) != v]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["flags (manifest.json is damaged)"]
