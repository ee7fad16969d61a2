"""Every common way in which a file of a format is broken, as files to write in its place.

A way may break a file in several places; each place is one damaged file.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from common import checkpoint as checkpoints

BOMB_BYTES = 90 << 20
Breaks = Iterator[Callable[[Path], Any]]


def _bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def any_file(whole: Path) -> dict[str, Breaks]:
    """Ways to break a file of any format."""
    content = whole.read_bytes()
    noise = np.random.default_rng(3).integers(0, 256, max(len(content), 50), dtype=np.uint8).tobytes()
    return {
        "empty": iter([_bytes(b"")]),
        "cut": iter([_bytes(content[: len(content) * share // 10]) for share in (3, 6)]),
        "garbage": iter([_bytes(noise)]),
        "text": iter([_bytes(b"hello, this is no data\n")]),
        "directory": iter([lambda path: path.mkdir()]),
        "missing": iter([lambda path: None]),
    }


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=values.dtype.hasobject)
    return buffer.getvalue()


def _lying() -> bytes:
    """Return an npy header of 10^12 values with none behind it."""
    buffer = io.BytesIO()
    shape = (10**4, 10**4, 10**4)
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _others(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays that may stand in the place of `values`, by way."""
    found = {
        "wrong shape": values[None, None],
        "wrong dtype": np.full(values.shape, "a"),
        "object array": np.array([{"a": 1}, None], dtype=object),
        "no values": np.zeros((0,) * max(1, values.ndim), values.dtype),
    }
    if values.dtype.kind == "f":
        bad = values.copy()
        bad[...] = np.nan
        found["NaN"] = bad
    return found


def npy(whole: Path) -> dict[str, Breaks]:
    """Ways to break an npy file."""
    values = np.load(whole, allow_pickle=False)
    ways = {way: iter([_bytes(_npy(other))]) for way, other in _others(values).items()}
    return {**ways, "lying header": iter([_bytes(_lying())])}


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for key, data in members.items():
            target.writestr(f"{key}.npy", data)
    return buffer.getvalue()


def npz(whole: Path) -> dict[str, Breaks]:
    """Ways to break an npz file; each array in turn."""
    with np.load(whole, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    members = {name: _npy(values) for name, values in arrays.items()}
    zeros = _npy(np.zeros(BOMB_BYTES // 8))

    def changed(name: str, data: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(_archive({**members, name: data}))

    def each(way: str) -> Breaks:
        for name, values in arrays.items():
            others = _others(values)
            if way in others:
                yield changed(name, _npy(others[way]))

    gone = [_bytes(_archive({k: v for k, v in members.items() if k != name})) for name in members]
    ways = {way: each(way) for way in ("wrong shape", "wrong dtype", "object array", "NaN")}
    first = next(iter(members))
    return {
        **ways,
        "wrong key": iter(gone),
        "lying header": iter([changed(name, _lying()) for name in members]),
        "bomb": iter([changed(first, zeros)]),
    }


def h5(whole: Path) -> dict[str, Breaks]:
    """Ways to break an HDF5 file; each dataset in turn."""
    names: list[str] = []
    with h5py.File(whole) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)

    def each(change: Callable[[h5py.File, str, np.ndarray], Any]) -> Breaks:
        for name in names:

            def write(path: Path, name: str = name) -> None:
                shutil.copyfile(whole, path)
                with h5py.File(path, "r+") as file:
                    values = np.asarray(file[name])
                    del file[name]
                    change(file, name, values)

            yield write

    def put(way: str) -> Callable[[h5py.File, str, np.ndarray], Any]:
        def change(file: h5py.File, name: str, values: np.ndarray) -> None:
            file[name] = "a" if way == "wrong dtype" else _others(values).get(way, values)

        return change

    def external(file: h5py.File, name: str, values: np.ndarray) -> None:
        secret = Path(file.filename).with_name("secret.bin")
        secret.write_bytes(bytes(values.astype("f4").nbytes if values.dtype.kind in "fiub" else 4))
        count = secret.stat().st_size // 4
        file.create_dataset(name, (count,), "f4", external=[(str(secret), 0, 4 * count)])

    return {
        "wrong key": each(lambda file, name, values: None),
        "wrong dtype": each(put("wrong dtype")),
        "wrong shape": each(put("wrong shape")),
        "NaN": each(put("NaN")),
        "external": each(external),
        "link": each(lambda file, name, _: file.__setitem__(name, h5py.ExternalLink("other.h5", "/a"))),
        "lying header": each(
            lambda file, name, _: file.create_dataset(name, (10**4,) * 3, "f4", chunks=True)
        ),
    }


def as_json(whole: Path) -> dict[str, Breaks]:
    """Ways to break a JSON document; each entry of it in turn."""
    document = json.loads(whole.read_text())
    keys = sorted(document) if isinstance(document, dict) else []

    def write(value: Any) -> Callable[[Path], Any]:
        return _bytes(json.dumps(value).encode())

    ways: dict[str, Breaks] = {
        "wrong document": iter([write(value) for value in (None, 3, "x", [[]], {"a": 1})]),
        "bomb": iter([_bytes(b"[" * 300_000)]),
    }
    if keys:
        ways["wrong key"] = iter([write({k: v for k, v in document.items() if k != key}) for key in keys])
        ways["wrong dtype"] = iter([write({**document, key: {"x": [None]}}) for key in keys])
    return ways


def text(whole: Path) -> dict[str, Breaks]:
    """Ways to break a table or a list of values: its last number in turn becomes something else."""
    content = whole.read_text()
    digits = [i for i, c in enumerate(content) if c.isdigit()]

    def put(word: str) -> Callable[[Path], Any]:
        return _bytes((content[: digits[-1]] + word + content[digits[-1] + 1 :]).encode())

    return {
        "binary": iter([_bytes(content.encode() + b"\xff\xfe\x00")]),
        "word": iter([put("x")] if digits else []),
        "NaN": iter([put("nan")] if digits else []),
    }


def picture(_whole: Path) -> dict[str, Breaks]:
    """Ways to break a PNG: 100 megapixels in 100 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    size = 14_000
    rows = b"".join(packer.compress(bytes(size + 1)) for _ in range(size)) + packer.flush()
    head = size.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return {"bomb": iter([_bytes(data)])}


def checkpoint(whole: Path) -> dict[str, Breaks]:
    """Ways to break a checkpoint: of another package, kind or form; a weight gone, misshapen, or flipped."""
    found = checkpoints.load(whole)
    name = sorted(found.state_dict)[-1]
    without = {k: v for k, v in found.state_dict.items() if k != name}
    raw = bytearray(whole.read_bytes())
    largest = max(found.state_dict.values(), key=torch.numel)
    raw[raw.index(largest.numpy().tobytes()[:64]) + 5] ^= 1

    def write(**changes: Any) -> Callable[[Path], Any]:
        return lambda path: checkpoints.save(path, replace(found, **changes))

    return {
        "other package": iter([write(package="another")]),
        "other kind": iter([write(kind="another")]),
        "wrong key": iter([write(state_dict=without), write(config={})]),
        "wrong shape": iter([write(state_dict={**without, name: torch.zeros(3, 1, 2)})]),
        "not ours": iter([lambda path: torch.save({"model": torch.zeros(2)}, path)]),
        "flipped bit": iter([_bytes(bytes(raw))]),
    }


_BY_KIND: dict[str, Callable[[Path], dict[str, Breaks]]] = {
    "npy": npy,
    "npz": npz,
    "h5": h5,
    "json": as_json,
    "text": text,
    "checkpoint": checkpoint,
}


def ways_of(whole: Path, kind: str, suffix: str) -> dict[str, Breaks]:
    """Return all ways to break a file."""
    special = picture if suffix == ".png" else _BY_KIND.get(kind, lambda _: {})
    return {**any_file(whole), **special(whole)}
