"""Data sets on disk: OpenFWI's arrays of many samples, and one folder a sample.

Both give the same view: a survey, sample names, families, raw gathers [S, T, R], velocities [Z, X] in km/s.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import is_file, read_json
from velocity_inversion.arrays import check_gather, open_array, require_gather_shape, to_km_s
from velocity_inversion.geometry import FILE_NAME, Survey, challenge_survey, openfwi_survey, read_survey

FAMILIES_FILE = "families.json"
MODEL_FILE = "vp_model.npy"
_NUMBER = re.compile(r"(\d+)(?=\D*$)")
# names of OpenFWI's families, as folders and files carry them
_FAMILY = re.compile(r"(?:(?:Flat|Curve)(?:Vel|Fault)|Style)[_-]?[AB](?![A-Za-z])", re.IGNORECASE)
# where one family's arrays may lie: (gathers, sections), beside each other or in folders of their own
_PATTERNS = (
    ("data*.npy", "model*.npy"),
    ("data/data*.npy", "model/model*.npy"),
    ("seis*.npy", "vel*.npy"),
)
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".sgy", ".segy")  # what is no list of pairs
_PLAIN_FOLDERS = ("data", "model")


class Source(ABC):
    """Samples on disk."""

    survey: Survey
    ids: list[str]
    families: list[str]
    has_truth: bool
    empty: Sequence[str] = ()  # sample folders without any gather

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read_gathers(self, index: int, *, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (gathers [S, T, R] float32 at the survey's interval, live [S, R])."""

    @abstractmethod
    def velocity(self, index: int) -> np.ndarray:
        """Return the true section [Z, X], km/s."""

    @abstractmethod
    def gather_files(self) -> list[Path]:
        """Return the files that gathers are read from."""

    @cached_property
    def content_key(self) -> str:
        """Hash of the gathers' contents and the survey, for caches."""
        digest = hashlib.blake2b(json.dumps(self.survey.to_dict(), sort_keys=True).encode(), digest_size=16)
        for path in self.gather_files():
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


class OpenFwiSource(Source):
    """`data*.npy` [n, S, T, R] and `model*.npy` [n, 1, Z, X], or `seis*.npy` and `vel*.npy`.

    Args:
        root: folder of the files, of geometry.json and families.json.
        survey: instead of geometry.json.
        pairs: (data file, model file or none) instead of what lies in the folder.
    """

    def __init__(
        self, root: Path, survey: Survey | None = None, pairs: list[tuple[Path, Path | None]] | None = None
    ) -> None:
        self.root = root
        self.survey = survey or (
            read_survey(root / FILE_NAME) if (root / FILE_NAME).exists() else openfwi_survey()
        )
        found = _numbered_pairs(root) if pairs is None else pairs
        data = [pair[0] for pair in found]
        models = [pair[1] for pair in found if pair[1] is not None]
        self.has_truth = bool(models)
        self._data, self._models = data, models
        self.ids, self.families, self._places = [], [], []
        labels = _family_labels(root)
        for file, path in enumerate(data):
            count = self._checked(path, models[file] if models else None)
            stem = path.stem.removeprefix("data").lstrip("_")
            if pairs is not None and path.parent != root:  # families in folders of their own share numbers
                stem = f"{_folder_of(path)}_{stem}"
            family = family_name(path)
            for row in range(count):
                name = f"{stem}_{row:04d}".lstrip("_")
                self.ids.append(name)
                self.families.append(labels.get(name, family))
                self._places.append((file, row))

    def _checked(self, path: Path, model: Path | None) -> int:
        data = open_array(path, 4)
        survey = self.survey
        if data.shape[1] != survey.num_shots:
            raise DataError(f"{path}: shape {data.shape}, expected {survey.num_shots} shots on axis 1")
        require_gather_shape(data.shape[2:], str(path), survey, survey.num_receivers)
        if model is not None and (found := open_array(model, 4)).shape[:2] != (len(data), 1):
            raise DataError(
                f"{model}: shape {found.shape}, expected ({len(data)}, 1, Z, X) as in {path.name}"
            )
        return len(data)

    def gather_files(self) -> list[Path]:
        """Return the data files."""
        return list(self._data)

    def read_gathers(self, index: int, *, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return one sample; its last time row, which published families fill differently, is zeroed."""
        file, row = self._places[index]
        path = self._data[file]
        gathers = np.array(open_array(path, 4)[row], dtype=np.float32)
        gathers[:, -1] = 0
        live = np.stack(
            [
                check_gather(gather, f"{path} sample {row} shot {shot}", training=training)
                for shot, gather in enumerate(gathers)
            ]
        )
        return gathers, live

    def velocity(self, index: int) -> np.ndarray:
        """Return the true section [Z, X], km/s."""
        file, row = self._places[index]
        path = self._models[file]
        return to_km_s(open_array(path, 4)[row, 0], f"{path} sample {row}", self.survey)


class FolderSource(Source):
    """One folder a sample: `receiver_data_src_*.npy` (T, R) and, in training data, `vp_model.npy`."""

    def __init__(
        self, root: Path, folders: list[Path], survey: Survey | None = None, empty: Sequence[str] = ()
    ) -> None:
        self.root, self.empty = root, empty
        given = next((p / FILE_NAME for p in (root, root.parent) if (p / FILE_NAME).exists()), None)
        self.survey = survey or (read_survey(given) if given else challenge_survey())
        self._folders = folders
        self.ids = [folder.name for folder in folders]
        labels = _family_labels(root)
        self.families = [labels.get(name, root.name) for name in self.ids]
        with_truth = [(folder / MODEL_FILE).exists() for folder in folders]
        self.has_truth = all(with_truth)
        if any(with_truth) and not self.has_truth:
            missing = folders[with_truth.index(False)] / MODEL_FILE
            raise DataError(f"{missing}: no such file, the other samples have one; add it or remove all")
        wanted = set(self.survey.source_files)
        for folder in folders:
            found = {path.name for path in folder.glob("receiver_data_src_*.npy")}
            if found != wanted:
                name = sorted(wanted - found or found - wanted)[0]
                what = "no such file" if wanted - found else "a gather that geometry.json does not name"
                raise DataError(f"{folder / name}: {what}, expected {', '.join(self.survey.source_files)}")

    def gather_files(self) -> list[Path]:
        """Return the files of all gathers."""
        return [folder / name for folder in self._folders for name in self.survey.source_files]

    def read_gathers(self, index: int, *, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return one sample; shots with fewer receivers are filled with dead traces."""
        survey = self.survey
        gathers = np.zeros((survey.num_shots, survey.num_samples, survey.num_receivers), dtype=np.float32)
        live = np.zeros((survey.num_shots, survey.num_receivers), dtype=bool)
        for shot, name in enumerate(survey.source_files):
            path = self._folders[index] / name
            gather = open_array(path, 2)
            count = len(survey.receiver_xz[shot])
            require_gather_shape(gather.shape, str(path), survey, count)
            gathers[shot, :, :count] = gather
            live[shot, :count] = check_gather(gathers[shot, :, :count], str(path), training=training)
        return gathers, live

    def velocity(self, index: int) -> np.ndarray:
        """Return the true section [Z, X], km/s."""
        path = self._folders[index] / MODEL_FILE
        return to_km_s(open_array(path, 2), str(path), self.survey)


def _numbered_pairs(root: Path) -> list[tuple[Path, Path | None]]:
    """Return data and model files of a folder, by number.

    Raises:
        DataError: numbers without their partner.
    """
    pattern = next((p for p in _PATTERNS if any(root.glob(p[0]))), _PATTERNS[0])
    data, models = (sorted(root.glob(part), key=_by_number) for part in pattern)
    if models and [_number(p) for p in data] != [_number(p) for p in models]:
        odd = {_number(p) for p in data} ^ {_number(p) for p in models}
        raise DataError(
            f"{root}: {len(data)} data files and {len(models)} model files, numbers "
            f"{', '.join(sorted(odd)) or 'in another order'} lack their partner; expected data<N>.npy beside "
            "model<N>.npy"
        )
    return list(zip(data, models or [None] * len(data), strict=True))


def read_pairs(path: Path) -> list[tuple[Path, Path | None]]:
    """Read a list file: a data file and, after a tab, its model file on each line, relative to the list.

    Raises:
        DataError: it is no text, lines differ in their columns, or a file is not there.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}, expected a text file of data files and model files") from error
    rows = [[word.strip() for word in line.split("\t") if word.strip()] for line in lines]
    columns = {len(row) for row in rows}
    if columns not in ({1}, {2}):
        raise DataError(
            f"{path}: lines of {', '.join(map(str, sorted(columns))) or 'no'} columns, expected one or two "
            "file names on each, separated by a tab"
        )
    pairs: list[tuple[Path, Path | None]] = []
    for number, row in enumerate(rows, start=1):
        files = [path.parent / word for word in row]
        for file in files:
            if not is_file(file):
                raise DataError(f"{path}: line {number}: {file}: no such file; correct the list")
        pairs.append((files[0], files[1] if len(files) == 2 else None))
    return pairs


def open_source(path: str | Path) -> Source:
    """Open a folder of either layout, one sample's folder, or a list file of OpenFWI pairs.

    Raises:
        DataError: there is no data, or what is there is not as its geometry says.
    """
    root = Path(path)
    if root.is_file() and root.suffix in _ARRAYS:
        raise DataError(
            f"{root}: is a single {root.suffix} file, expected a folder (of data*.npy beside model*.npy, or "
            f"of sample folders); name its folder {root.parent}"
        )
    if root.is_file():
        return OpenFwiSource(root.parent, pairs=read_pairs(root))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, expected one of data*.npy files or of sample folders")
    if any(any(root.glob(pattern)) for pattern, _ in _PATTERNS):
        return OpenFwiSource(root)
    if any(root.glob("receiver_data_src_*.npy")):
        return FolderSource(root.parent, [root])
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_by_number)
    empty = [p.name for p in folders if not any(p.glob("*.npy"))]
    folders = [p for p in folders if p.name not in empty]
    if not folders:
        raise DataError(
            f"{root}: no data*.npy and no sample folder with receiver_data_src_*.npy; run make_data.py or "
            "prep_data.py first"
        )
    return FolderSource(root, folders, empty=empty)


def require_disjoint(train: Source, other: Source) -> None:
    """Check that training and validation data share no file and, where samples are folders, no name.

    Raises:
        DataError: naming a shared one.
    """
    wanted = "expected other samples; correct --train_data_path or --val_data_path"
    if isinstance(train, FolderSource) and isinstance(other, FolderSource):
        shared = sorted(set(train.ids) & set(other.ids))
        if shared:
            place = other.root / shared[0]
            raise DataError(f"{place}: the same sample in training and validation data, {wanted}")
    used = {path.resolve() for path in train.gather_files()}
    for path in other.gather_files():
        if path.resolve() in used:
            raise DataError(f"{path}: the same file in training and validation data, {wanted}")


def _family_labels(root: Path) -> dict[str, str]:
    path = root / FAMILIES_FILE
    if not path.exists():
        return {}
    try:
        return {str(k): str(v) for k, v in read_json(path, "expected sample name: family").items()}
    except AttributeError as error:
        raise DataError(f"{path}: {error}, expected a JSON object of sample name: family") from error


def family_name(path: Path) -> str:
    """Return the family that a file's or folder's name tells (FlatVel_A .. Style_B), else its folder's."""
    for part in (path.stem, _folder_of(path)):
        if found := _FAMILY.search(part):
            return found.group(0).replace("-", "_")
    return _folder_of(path)


def _folder_of(path: Path) -> str:
    """Return the name of the folder around a file, above the folders that only sort arrays by kind."""
    return next((p.name for p in path.parents if p.name not in _PLAIN_FOLDERS), "")


def _number(path: Path) -> str:
    return "_".join(re.findall(r"\d+", path.stem)) or path.stem


def _by_number(path: Path) -> tuple[int, str]:
    found = _NUMBER.search(path.stem)
    return (int(found.group(1)) if found else -1, path.name)
