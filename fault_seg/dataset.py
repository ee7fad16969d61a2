"""Training samples: folders of volume pairs, or cubes made on the fly; crops, augmentation, solved time.

An item is a dict of float32 tensors [1, Z, Y, X]: image, and what the heads need of fsem, fdip, fstrike,
dhr, rgt, tau (solved geological time in voxels); and "source", a string that names where it came from. Items
for a refining network hold a first estimate as well (see `fault_seg.first_estimates`); their tau is its time,
and an image is there only when asked for, with "solved_tau", the time solved from the clean image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import DataError, UserError
from common.files import read_json
from common.noise import numpy_stream
from common.normalization import ClippedZScore
from common.sampling import Draw
from fault_seg.augment import augment, crop, disturb
from fault_seg.first_estimates import PREFIX, time_in_voxels
from fault_seg.geotime import solve_geological_time
from fault_seg.model import REFINE_INPUTS
from fault_seg.pair_files import find_images, partner, require_paired
from fault_seg.synthetic import GeneratorConfig, degrade, make_sample
from fault_seg.volumes import open_volume, read_volume

Shape = tuple[int, int, int]
TARGETS = {"fault": ("fsem", "fdip", "fstrike"), "dhr": ("dhr",), "rgt": ("rgt", "dhr", "fsem")}
CLIP_STD = 5.0
TAU_CACHE_BYTES = 1 << 30  # of solved times that a process keeps


def targets_of(heads: Iterable[str]) -> list[str]:
    """Return the names of the target volumes that the heads need, each once."""
    return list(dict.fromkeys(name for head in heads for name in TARGETS[head]))


def normalise_image(image: np.ndarray) -> np.ndarray:
    """Return `image` at zero mean and unit std, clipped at 5, by the rule inference has for surveys."""
    return ClippedZScore.from_sample(image[image != 0]).apply(image)


def solved_time(dhr: np.ndarray, fsem: np.ndarray) -> np.ndarray:
    """Return the solved geological time [n1, n2, n3] in voxels; unlabelled voxels count as no fault."""
    return solve_geological_time(torch.from_numpy(dhr), torch.from_numpy(fsem).clamp_min(0)).numpy()


class _Volumes(Dataset[dict[str, Any]]):
    """What both kinds of samples share: from whole volumes to an item."""

    def __init__(
        self,
        heads: tuple[str, ...],
        seed: int,
        crop_shape: Shape | None,
        augmented: bool,
        disturbed: bool,
        kind: str = "infer",
        with_image: bool = True,
    ) -> None:
        self.heads = heads
        self.seed = seed
        self.crop_shape = crop_shape
        self.augmented = augmented
        self.disturbed = disturbed
        self.refines = kind == "refine"
        self.with_image = with_image or not self.refines

    def _item(
        self,
        volumes: dict[str, np.ndarray],
        position: int,
        source: str,
        first: dict[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        rng = numpy_stream(self.seed, "crop and augment", position)
        shown = volumes if self.with_image else {**volumes, "image": volumes["dhr"]}
        if self.crop_shape is not None:
            full = shown["image"].shape
            origin = [int(rng.integers(0, n - c + 1)) for n, c in zip(full, self.crop_shape, strict=True)]
            box = (origin[0], origin[1], origin[2]), self.crop_shape
            shown, first = crop(shown, *box), _cropped_estimate(first, *box)
            if first and "tau" in shown:
                shown["tau"] = shown["tau"] - np.float32(origin[0])
        if self.augmented:
            same = copy.deepcopy(rng)
            shown = augment(shown, rng)
            if first:
                first = augment({**first, "image": first["dhr"]}, same)
                del first["image"]
        if self.disturbed and self.with_image:
            shown = {**shown, "image": disturb(shown["image"], rng)}
        shown = {**shown, "image": np.clip(shown["image"], -CLIP_STD, CLIP_STD)}
        if first:
            shown = _with_estimate(shown, first, with_image=self.with_image)
        tensors = {
            n: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)[None]) for n, v in shown.items()
        }
        if first and self.with_image:  # every other sample of an inference, see `FaultTask.estimated`
            tensors["use_inference"] = torch.tensor(position % 2)
        return {**tensors, "source": source}


def _cropped_estimate(
    first: dict[str, np.ndarray] | None, origin: Shape, shape: Shape
) -> dict[str, np.ndarray] | None:
    """Return the box of an estimate; its time in voxels counts from the top of the box."""
    if first is None:
        return None
    cut = crop(first, origin, shape)
    return {**cut, "tau": cut["tau"] - np.float32(origin[0])}


def _with_estimate(
    volumes: dict[str, np.ndarray], first: dict[str, np.ndarray], *, with_image: bool
) -> dict[str, np.ndarray]:
    """Return the volumes of an item for a refining network."""
    named = {n: v for n, v in volumes.items() if n not in ("image", "tau")}
    named |= {f"{PREFIX}{n}": v for n, v in first.items()}
    named["tau"] = first["tau"]
    if with_image:
        named |= {"image": volumes["image"], "solved_tau": volumes["tau"]}
    return named


def first_estimate(volumes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an estimate from rgt, dhr, fsem, fdip and fstrike of one whole cube, as files hold them."""
    fsem = np.clip(volumes["fsem"], 0, 1)
    gate = np.where(fsem > 0, fsem, 1).astype(np.float32)
    return {
        "rgt": volumes["rgt"],
        "tau": time_in_voxels(volumes["rgt"], fsem),
        "dhr": normalise_image(volumes["dhr"]),
        "fsem": fsem,
        "fdip": np.clip(volumes["fdip"] / gate, 0, 1),
        "fstrike": np.clip(volumes["fstrike"] / gate, 0, 1),
    }


class SyntheticVolumes(_Volumes):
    """Cubes of the generator, a new one for every position of the draw.

    Args:
        generator: what to make.
        num_samples: length, for counting epochs.
        heads: which targets an item holds.
        seed: of the cubes, crops and augmentation.
        crop_shape: (z, y, x) of a random crop; None = whole cubes.
        augmented: turn, flip and change the polarity.
        disturbed: change gain, band and noise of the image.
        kind: of the network: refine adds degraded volumes as first estimates.
        with_image: whether items for refine hold the image.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        num_samples: int,
        heads: tuple[str, ...],
        *,
        seed: int,
        crop_shape: Shape | None = None,
        augmented: bool = False,
        disturbed: bool = False,
        kind: str = "infer",
        with_image: bool = True,
    ) -> None:
        super().__init__(heads, seed, crop_shape, augmented, disturbed, kind, with_image)
        self.generator = generator
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        sample = make_sample(self.seed, draw.position, self.generator)
        volumes = {"image": normalise_image(sample.image)} if self.with_image else {}
        volumes |= {name: getattr(sample, name) for name in targets_of(self.heads)}
        if "rgt" in self.heads and self.with_image:
            volumes["tau"] = solved_time(sample.dhr, sample.fsem)
        first = None
        if self.refines:
            first = first_estimate(degrade(sample, self.seed, draw.position, self.generator.fault_width))
        return self._item(volumes, draw.position, f"synthetic sample {draw.position}", first)


class VolumePairs(_Volumes):
    """Images and targets in two folders: `{i}.bin` or `{i}.npy`, and `{i}_fsem.bin` and so on.

    Args:
        data_dir: folder of the images.
        target_dir: folder of the targets.
        shape: (n1, n2, n3); zeros are found from the files.
        heads: which targets must exist.
        seed: of crops and augmentation.
        crop_shape: (z, y, x) of a random crop; None = whole cubes.
        augmented: turn, flip and change the polarity.
        disturbed: change gain, band and noise of the image.
        limit: use samples 0..limit-1; 0 = all.
        solved: items hold tau where the heads have rgt.
        kind: of the network: for refine the data folder holds first estimates, `{i}_fsem.bin` and so on.
        with_image: whether items for refine hold the image.
        advice: what to do when the data folder holds no samples.

    Raises:
        UserError: the limit is negative, or nothing tells the sizes.
        DataError: a folder or a partner is missing, or a crop is larger than the cubes.
    """

    def __init__(
        self,
        data_dir: Path,
        target_dir: Path,
        shape: Shape,
        heads: tuple[str, ...],
        *,
        seed: int = 0,
        crop_shape: Shape | None = None,
        augmented: bool = False,
        disturbed: bool = False,
        limit: int = 0,
        solved: bool = True,
        kind: str = "infer",
        with_image: bool = True,
        advice: str = "",
    ) -> None:
        super().__init__(heads, seed, crop_shape, augmented, disturbed, kind, with_image)
        if limit < 0:
            raise UserError(f"{data_dir}: {limit} samples asked for; expected 0 (all) or more")
        self.data_dir, self.target_dir = Path(data_dir), Path(target_dir)
        self.images = find_images(self.data_dir, "" if self.with_image else "_fsem", advice)
        if limit > len(self.images):
            raise DataError(
                f"{data_dir}: {len(self.images)} samples found, {limit} asked for; lower the number"
            )
        self.limited = limit > 0
        self.images = self.images[: limit or None]
        self.shape = find_shape(self.data_dir, self.images[0], shape)
        numbers = range(len(self.images))
        self.targets = {
            name: [partner(self.target_dir, i, name) for i in numbers] for name in targets_of(heads)
        }
        self.estimates = {
            name: [partner(self.data_dir, i, name) for i in numbers]
            for name in (REFINE_INPUTS if self.refines else ())
        }
        if crop_shape is not None and any(c > n for c, n in zip(crop_shape, self.shape, strict=True)):
            raise DataError(
                f"{data_dir}: cubes of {self.shape}, smaller than --crop {crop_shape}; lower --crop"
            )
        self._solved = solved
        self._tau: dict[int, np.ndarray] = {}

    def check(self) -> None:
        """Read every file once: sizes, finite values, a signal in the image, labels in {-1, 0, 1}.

        Raises:
            DataError: naming the file and the first voxel that is wrong, or a target without an image.
        """
        if not self.limited:
            require_paired(self.data_dir, self.target_dir, len(self.images), self.targets)
        for index, path in enumerate(self.images):
            image = read_volume(path, self.shape)
            _require(path, image, np.isfinite(image), "a finite value")
            if self.with_image:
                _normalised(path, image)
            for paths in self.estimates.values():
                values = read_volume(paths[index], self.shape)
                _require(paths[index], values, np.isfinite(values), "a finite value")
            for name, paths in self.targets.items():
                target = read_volume(paths[index], self.shape)
                _require(paths[index], target, np.isfinite(target), "a finite value")
                if name == "fsem":
                    _require(paths[index], target, np.isin(target, (-1, 0, 1)), "-1, 0 or 1")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index = draw.index
        path = self.images[index]
        volumes = {}
        if self.with_image:
            volumes["image"] = _normalised(path, read_volume(path, self.shape))
        volumes |= {name: read_volume(paths[index], self.shape) for name, paths in self.targets.items()}
        if self._solved and "rgt" in self.heads and self.with_image:
            volumes["tau"] = self._tau_of(index, volumes)
        first = None
        if self.refines:
            first = {name: read_volume(paths[index], self.shape) for name, paths in self.estimates.items()}
            first = first_estimate(first)
        return self._item(volumes, draw.position, str(path), first)

    def _tau_of(self, index: int, volumes: dict[str, np.ndarray]) -> np.ndarray:
        """Return the solved time of a sample; it is kept while there is room."""
        if index in self._tau:
            return self._tau[index]
        tau = solved_time(volumes["dhr"], volumes["fsem"])
        if (len(self._tau) + 1) * tau.nbytes <= TAU_CACHE_BYTES:
            self._tau[index] = tau
        return tau


def _normalised(path: Path, image: np.ndarray) -> np.ndarray:
    try:
        return normalise_image(image)
    except DataError as error:
        raise DataError(f"{path}: no signal ({error})") from error


def find_shape(folder: Path, first: Path, shape: Shape) -> Shape:
    """Return (n1, n2, n3): as given, else from the .npy or .h5 header, dataset.json, or an exact cube root.

    Raises:
        UserError: none of these tells, or a size is negative.
    """
    if min(shape) < 0:
        raise UserError(f"--n1 --n2 --n3 {shape}: expected positive sizes, or 0 to find them")
    if all(shape):
        return shape
    description = read_description(folder.parent)
    if first.suffix in (".npy", ".h5"):
        with open_volume(first) as volume:
            found = volume.shape
    elif description:
        found = description["shape"]
    else:
        size = first.stat().st_size
        edge = round((size // 4) ** (1 / 3))
        if edge**3 * 4 != size or not edge:
            raise UserError(
                f"{first}: {size} bytes are no cube of float32 and there is no dataset.json; "
                "pass --n1 --n2 --n3"
            )
        found = (edge, edge, edge)
    n1, n2, n3 = (given or n for given, n in zip(shape, found, strict=True))
    return (n1, n2, n3)


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return what make_data wrote about its data set, None when there is no dataset.json."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        description = read_json(path, "run make_data.py again")
        n1, n2, n3 = (int(n) for n in description["shape"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: not readable ({error}); run make_data.py again") from error
    return {**description, "shape": (n1, n2, n3)}


def _require(path: Path, values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        x, y, z = np.argwhere(~good.transpose(2, 1, 0))[0]
        raise DataError(
            f"{path}: {values[z, y, x]:g} at z {z} y {y} x {x} (from 0), expected {expected}; "
            "mend the file or make it again"
        )
