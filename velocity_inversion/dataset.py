"""Samples for the network: decimated once into a memory-mapped cache, flipped, augmented, batched.

Letters: B batch, S shots, T time samples at the network's interval, R receivers, Z depth, X horizontal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.files import atomic_path, require_free_space, write_json
from common.log import get_logger
from common.noise import numpy_stream, torch_stream
from common.sampling import Draw
from velocity_inversion.augment import Sample, augment, draw_scaling, flip, scale_velocity
from velocity_inversion.preprocess import band_pass, decimate, net_interval
from velocity_inversion.sources import Source, open_source

CACHE_VERSION = 1
CACHE_DIR = Path(".cache/velocity_inversion")


@dataclass(frozen=True)
class Preprocessing:
    """How raw gathers become the network's: stored in the checkpoint and applied alike in inference."""

    net_dt_s: float = 0.004
    bandpass_low_hz: float = 0.0
    bandpass_high_hz: float = 0.0

    def apply(self, gathers: np.ndarray, survey: Any) -> np.ndarray:
        """Return [S, T, R] at the network's interval from the survey's own."""
        filtered = band_pass(gathers, survey.dt_s, self.bandpass_low_hz, self.bandpass_high_hz)
        return decimate(filtered, self.factor(survey), self.length(survey))

    def factor(self, survey: Any) -> int:
        """Raw samples a network sample."""
        return net_interval(survey.dt_s, self.net_dt_s, survey.wavelet.peak_hz)[0]

    def length(self, survey: Any) -> int:
        """T: samples of the record at the network's interval."""
        return max(1, survey.num_samples // self.factor(survey))

    def interval(self, survey: Any) -> float:
        """The network's interval, seconds."""
        return self.factor(survey) * survey.dt_s


class ShotDataset(Dataset[Sample]):
    """Samples of a source.

    Args:
        source: the data on disk.
        preprocessing: filter and decimation.
        rows: samples of the source that belong here; none = all.
        cache_dir: where decimated gathers are kept; None reads raw files every time.
        training: whether all-zero gathers are errors, and truth is required.
        flips: whether samples are flipped with probability 0.5.
        augment_probability: of each other change.
        scaling: whether velocities and times are scaled together, with the same probability.
        family_balanced: draw families equally often.
        keeps_clean: whether samples carry "clean", their gathers before flip and augmentation, and whether
            they were "flipped": what a waveform misfit needs.
        seed: of flips, augmentation and balanced draws.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing = Preprocessing(),
        *,
        rows: Sequence[int] | None = None,
        cache_dir: Path | None = None,
        training: bool = False,
        flips: bool = False,
        augment_probability: float = 0.0,
        scaling: bool = False,
        family_balanced: bool = False,
        keeps_clean: bool = False,
        seed: int = 0,
    ) -> None:
        self.keeps_clean = keeps_clean
        self.source, self.preprocessing = source, preprocessing
        self.rows = list(range(len(source))) if rows is None else list(rows)
        self.training, self.flips, self.seed = training, flips, seed
        self.augment_probability, self.scaling = augment_probability, scaling
        if training and not source.has_truth:
            raise UserError("training data without velocities; expected model*.npy or vp_model.npy files")
        self._cache = _cached(source, preprocessing, cache_dir, training) if cache_dir else None
        families = [source.families[row] for row in self.rows]
        names = sorted(set(families))
        self._by_family = [[i for i, f in enumerate(families) if f == name] for name in names]
        self.family_balanced = family_balanced and len(names) > 1

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[str]:
        """Names of the samples, in order."""
        return [self.source.ids[row] for row in self.rows]

    def __getitem__(self, draw: Draw | int) -> Sample:
        place = draw if isinstance(draw, Draw) else Draw(draw, draw)
        row = self.rows[self._balanced(place) if self.family_balanced else place.index]
        survey = self.source.survey
        gathers, live = self._gathers(row)
        sample: Sample = {
            "gathers": torch.from_numpy(gathers),
            "live": torch.from_numpy(live),
            "source_xz": torch.from_numpy(survey.sources).float(),
            "receiver_xz": torch.from_numpy(np.nan_to_num(survey.receivers)).float(),
            "id": self.source.ids[row],
            "family": self.source.families[row],
            "source": str(self.source.ids[row]),
        }
        if self.source.has_truth:
            sample["vp"] = torch.from_numpy(self.source.velocity(row))[None]
        flipped = self.flips and numpy_stream(self.seed, "flip", place.position).random() < 0.5
        if self.keeps_clean:
            sample["clean"] = sample["gathers"]
            sample["flipped"] = torch.tensor(bool(flipped))
            sample["position"] = torch.tensor(place.position)
        if flipped:
            sample = flip(sample, survey.x_max_m)
        if self.augment_probability:
            interval = self.preprocessing.interval(survey)
            peak = survey.wavelet.peak_hz
            a = draw_scaling(self.seed, place.position, self.augment_probability) if self.scaling else None
            if a is not None:
                sample = scale_velocity(sample, interval, survey.v_bounds_km_s, a)
            sample = augment(sample, interval, peak, self.augment_probability, self.seed, place.position)
        return sample

    def _balanced(self, place: Draw) -> int:
        rng = numpy_stream(self.seed, "family draw", place.position)
        members = self._by_family[rng.integers(len(self._by_family))]
        return members[rng.integers(len(members))]

    def _gathers(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if self._cache is not None:
            gathers, live = _open_cache(*self._cache)
            return np.array(gathers[row]), np.array(live[row])
        raw, live = self.source.read_gathers(row, training=self.training)
        return self.preprocessing.apply(raw, self.source.survey), live


@lru_cache(maxsize=16)
def _open_cache(gathers: Path, live: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map the files of a cache once a process."""
    return np.load(gathers, mmap_mode="r", allow_pickle=False), np.load(live, allow_pickle=False)


def _cached(source: Source, preprocessing: Preprocessing, folder: Path, training: bool) -> tuple[Path, Path]:
    """Return (gathers, live) files of a source in the cache, written now if they are not there."""
    survey = source.survey
    settings = (
        f"{preprocessing.net_dt_s:g}_{preprocessing.bandpass_low_hz:g}_{preprocessing.bandpass_high_hz:g}"
    )
    stem = f"{source.content_key}_{settings}_v{CACHE_VERSION}"
    paths = folder / f"{stem}.npy", folder / f"{stem}.live.npy"
    shape = (len(source), survey.num_shots, preprocessing.length(survey), survey.num_receivers)
    if _usable(paths, shape):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    require_free_space(folder, 4 * int(np.prod(shape)))
    live = np.zeros((shape[0], shape[1], shape[3]), dtype=bool)
    with atomic_path(paths[0]) as temporary:
        found = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for row in range(len(source)):
            raw, live[row] = source.read_gathers(row, training=training)
            found[row] = preprocessing.apply(raw, survey)
        found.flush()
        del found
    with atomic_path(paths[1]) as temporary, temporary.open("wb") as file:
        np.save(file, live)
    write_json(folder / f"{stem}.json", {"samples": len(source), "survey": survey.to_dict()})
    get_logger().info(f"decimated gathers of {len(source)} samples cached in {folder}")
    return paths


def _usable(paths: tuple[Path, Path], shape: tuple[int, ...]) -> bool:
    """Whether a cache is whole; a broken one is made again, with a warning."""
    if not all(path.exists() for path in paths):
        return False
    try:
        gathers = np.load(paths[0], mmap_mode="r", allow_pickle=False)
        live = np.load(paths[1], allow_pickle=False)
        if gathers.shape == shape and live.shape == (shape[0], shape[1], shape[3]):
            return True
        found = f"shape {gathers.shape}, expected {shape}"
    except (OSError, ValueError, EOFError) as error:
        found = str(error).split("\n")[0]
    get_logger().warning(f"{paths[0]}: {found}; the cache is made again")
    return False


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples; shots and receivers that a sample lacks are padded with live = False."""
    shots = max(len(s["gathers"]) for s in samples)
    receivers = max(s["gathers"].shape[-1] for s in samples)
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [s[name] for s in samples]
        if not isinstance(values[0], torch.Tensor):
            batch[name] = values
            continue
        if name in ("gathers", "clean", "live", "source_xz", "receiver_xz"):
            axis = {"gathers": 2, "clean": 2, "live": 1, "receiver_xz": 1}.get(name)
            values = [_padded(v, shots, axis, receivers) for v in values]
        batch[name] = torch.stack(values)
    return batch


def _padded(value: torch.Tensor, shots: int, axis: int | None, receivers: int) -> torch.Tensor:
    shape = list(value.shape)
    shape[0] = shots
    if axis is not None:
        shape[axis] = receivers
    if shape == list(value.shape):
        return value
    out = value.new_zeros(shape)
    out[tuple(slice(n) for n in value.shape)] = value
    return out


def split_rows(source: Source, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return (training rows, validation rows) of a source, a seeded split by sample id.

    Each id draws its own number, so adding samples never moves another one.
    """
    draws = [numpy_stream(seed, f"split {name}").random() for name in source.ids]
    count = max(1, round(fraction * len(source)))
    chosen = set(sorted(range(len(source)), key=draws.__getitem__)[:count])
    return [i for i in range(len(source)) if i not in chosen], sorted(chosen)


def create_data_loaders(
    train_path: str | Path,
    batch_size: int = 8,
    cache_data: bool = True,
    num_workers: int = 0,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return (training, validation) loaders over a folder of either layout, split by sample id.

    Training samples are flipped with probability 0.5 and shuffled anew every epoch.
    """
    source = open_source(train_path)
    train_rows, val_rows = split_rows(source, val_fraction, seed)
    cache = CACHE_DIR if cache_data else None
    train = ShotDataset(source, rows=train_rows, cache_dir=cache, training=True, flips=True, seed=seed)
    val = ShotDataset(source, rows=val_rows, cache_dir=cache, training=True)
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate, "num_workers": num_workers}
    shuffled = torch_stream(seed, "loader order")
    return DataLoader(train, shuffle=True, generator=shuffled, **options), DataLoader(val, **options)
