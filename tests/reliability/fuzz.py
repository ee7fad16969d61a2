"""Damage to files and command lines, drawn by hypothesis: what a parser must answer with one line or take.

A `Parser` names a file that is written whole once and read after each damage.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common import checkpoint as checkpoints
from common.errors import DataError, UserError

HEAD = 4000
INTEGERS = (0, 1, -1, 2, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
WORDS = (
    "nan", "inf", "-inf", "1e999", "-1", "0", "1.5", "9" * 30, "9" * 5000, "1_0", "\u00b2", "\u0663", "",
    " ", ",", "\t", "/", "#", '"', "'", "null", "true", "[]", "{}", "\0", "\u00e9", "0x10", "1e-320", "--",
    "..", "/etc",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1.5, 1e308, 10**40, 2**63, "", "x", "nan", [], {}, [[]], {"a": 1},
    [None], ["x"], float("nan"), float("inf"), [1] * 40, [1e400, 2], "../x",
)  # fmt: skip
DTYPES = ("<f8", ">f4", "<i8", "u1", "?", "<c8", "S4", "<U3", "<M8[s]", "<f2", "<i2")
SHAPES = ((), (0,), (1,), (3, 0, 2), (2, 2), (1, 1, 1, 1, 1), (2,) * 9)
# What a user would see beside the one line, or instead of it: casts of NaN, overflows, values cut to real.
WARNINGS = (
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning"),
    pytest.mark.filterwarnings("error:genfromtxt"),
)
LYING = ((10**4, 10**4, 10**4), (2**40,), (2**62, 4), (10**9, 0))


@dataclass(frozen=True)
class Parser:
    """One reader of a package.

    Attributes:
        package: the package.
        what: which of its readers.
        file: name of the file that is damaged, below the folder.
        write: writes it, whole, and what belongs to it, into a folder.
        read: reads it as the package does, to the last value.
        kind: text, json, npy, npz, h5, checkpoint or bytes; more kinds of damage are tried for some.
    """

    package: str
    what: str
    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    kind: str = "bytes"

    @property
    def name(self) -> str:
        """Return its name in lists."""
        return f"{self.package}-{self.what}"


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return the content cut, overwritten, shifted or replaced by noise."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        way = rng.choice(("flip", "flip", "number", "number", "zero", "insert", "remove", "cut", "noise"))
        place = rng.randrange(min(len(data), HEAD) if rng.random() < 0.8 else len(data)) if data else 0
        if way == "flip" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif way == "number":
            width, order = rng.choice((2, 4, 8)), rng.choice(("big", "little"))
            value = rng.choice(INTEGERS) % (1 << 8 * width)
            data[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
        elif way == "zero":
            data[place : place + 64] = bytes(64)
        elif way == "insert":
            data[place:place] = rng.randbytes(rng.choice((1, 7, 300)))
        elif way == "remove":
            del data[place : place + rng.choice((1, 4, 300))]
        elif way == "cut":
            del data[rng.randrange(len(data) + 1) :]
        elif rng.random() < 0.1:
            return rng.randbytes(rng.choice((0, 1, 100, len(content))))
    return bytes(data)


def damaged_text(content: bytes, rng: random.Random) -> bytes:
    """Return the text with words, lines or characters replaced."""
    lines = content.decode("utf-8").split("\n")
    for _ in range(rng.randint(1, 3)):
        way, i = (
            rng.choice(("word", "word", "word", "drop", "double", "swap", "line")),
            rng.randrange(len(lines)),
        )
        if way == "word":
            cells = _pieces(lines[i])
            j = rng.randrange(len(cells))
            cells[j] = rng.choice(WORDS)
            lines[i] = "".join(cells)
        elif way == "drop" and len(lines) > 1:
            del lines[i]
        elif way == "double":
            lines.insert(i, lines[i])
        elif way == "swap":
            j = rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        else:
            lines[i] = rng.choice(WORDS) * rng.choice((1, 3))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _pieces(line: str) -> list[str]:
    """Split a line into words and what separates them."""
    pieces = [""]
    for character in line:
        if pieces[-1] and (character.isalnum() or character in ".-+_") != (
            pieces[-1][-1].isalnum() or pieces[-1][-1] in ".-+_"
        ):
            pieces.append("")
        pieces[-1] += character
    return pieces


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """Return the document with values replaced, removed or nested too deep."""
    if rng.random() < 0.05:
        return b"[" * 200_000
    if rng.random() < 0.1:
        return json.dumps(rng.choice(VALUES)).encode()
    document = json.loads(content)
    for _ in range(rng.randint(1, 2)):
        document = _changed(document, rng)
    return json.dumps(document).encode()


def _changed(node: Any, rng: random.Random) -> Any:
    if isinstance(node, dict) and node and rng.random() < 0.9:
        key = rng.choice(sorted(node))
        if rng.random() < 0.15:
            return {k: v for k, v in node.items() if k != key}
        return {**node, key: _changed(node[key], rng)}
    if isinstance(node, list) and node and rng.random() < 0.8:
        i = rng.randrange(len(node))
        if rng.random() < 0.2:
            return node[:i] + node[i + 1 :]
        return [*node[:i], _changed(node[i], rng), *node[i + 1 :]]
    return rng.choice(VALUES)


def _other_array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    way = rng.choice(("dtype", "shape", "value", "value", "axis", "object"))
    if way == "dtype":
        return np.zeros(values.shape, rng.choice(DTYPES))
    if way == "shape":
        return np.zeros(rng.choice(SHAPES), values.dtype)
    if way == "axis" and values.ndim:
        return (
            values[..., : rng.randint(0, max(0, values.shape[-1] - 1))]
            if rng.random() < 0.5
            else values[None]
        )
    if way == "object":
        return np.array([{"a": 1}, None], dtype=object)
    if values.dtype.kind in "fiu" and values.size:
        values = values.copy()
        bad = (np.nan, np.inf, -1e30, 1e30) if values.dtype.kind == "f" else (np.iinfo(values.dtype).max, 0)
        values.flat[rng.randrange(values.size)] = rng.choice(bad)
    return values


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=values.dtype.hasobject)
    return buffer.getvalue()


def _lying_npy(rng: random.Random) -> bytes:
    """Return a header of far more values than follow, or of no array at all."""
    buffer = io.BytesIO()
    header = {"descr": rng.choice(DTYPES), "fortran_order": rng.random() < 0.5, "shape": rng.choice(LYING)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(rng.choice((0, 64)))


def damaged_npy(content: bytes, rng: random.Random) -> bytes:
    """Return an npy file of other values, another type or shape, or with a lying header."""
    if rng.random() < 0.3:
        return _lying_npy(rng)
    return _npy(_other_array(np.load(io.BytesIO(content), allow_pickle=False), rng))


def damaged_npz(content: bytes, rng: random.Random) -> bytes:
    """Return an npz file in which one array is missing or another one."""
    import zipfile

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        members = {name: _npy(archive[name]) for name in archive.files}
        name = rng.choice(sorted(members))
        if rng.random() < 0.2:
            del members[name]
        elif rng.random() < 0.3:
            members[name] = rng.choice((_lying_npy(rng), b"", b"no array"))
        else:
            members[name] = _npy(_other_array(archive[name], rng))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for key, data in members.items():
            target.writestr(f"{key}.npy", data)
    return buffer.getvalue()


def damage_h5(path: Path, rng: random.Random) -> None:
    """Remove or replace an item or an attribute of an HDF5 file where it lies."""
    names: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visit(names.append)
        name = rng.choice(sorted(names))
        node = file[name]
        if rng.random() < 0.3:
            holder = file if rng.random() < 0.5 and file.attrs else node
            if holder.attrs:
                key = rng.choice(sorted(holder.attrs))
                value = rng.choice(
                    ("", "x", -1, 0, np.nan, 1e300, [1, 2], np.zeros(0), "9" * 400, h5py.Empty("f"))
                )
                del holder.attrs[key]
                if rng.random() < 0.8:
                    holder.attrs[key] = value
                return
        values = node[()] if isinstance(node, h5py.Dataset) else np.zeros(3)
        del file[name]
        way = rng.choice(
            ("gone", "group", "array", "array", "array", "text", "link", "external", "lying", "null")
        )
        if way == "group":
            file.create_group(name)
        elif way == "text":
            file[name] = rng.choice(("x", ["a", "b"]))
        elif way == "link":
            file[name] = rng.choice((h5py.SoftLink("/nowhere"), h5py.ExternalLink("other.h5", "/x")))
        elif way == "external":
            file.create_dataset(name, (4,), "f4", external=[("/etc/hostname", 0, 16)])
        elif way == "lying":
            file.create_dataset(name, rng.choice(LYING[:2]), "f4", chunks=True)
        elif way == "null":
            file[name] = h5py.Empty("f4")
        elif way == "array":
            other = _other_array(np.asarray(values), rng)
            if other.dtype.kind in "fiubSc" or other.dtype.kind == "?":
                file[name] = other


def damage_checkpoint(path: Path, whole: Path, rng: random.Random) -> None:
    """Write a checkpoint with a sound hash in which an entry of a part is missing or another one."""
    found = checkpoints.load(whole)
    part = rng.choice(("config", "normalization", "state_dict"))
    tree = dict(getattr(found, part))
    if part == "state_dict" and tree:
        name = rng.choice(sorted(tree))
        value = tree.pop(name)
        if rng.random() < 0.7:
            others = (
                value[None],
                value.flatten()[:1],
                value.to(torch.int64),
                "no tensor",
                value * float("nan"),
            )
            tree[name] = rng.choice(others)
    else:
        tree = _changed(tree, rng)
    checkpoints.save(path, replace(found, **{part: tree}))


def with_sound_heaps(data: bytes, content: bytes) -> bytes:
    """Return `data` with the global heaps of the whole HDF5 file, where they still lie in their place.

    The HDF5 library never returns from a heap whose entries have no length: no program that calls it can do
    anything about that.
    """
    found, start = bytearray(data), content.find(b"GCOL")
    while start >= 0:
        stop = start + int.from_bytes(content[start + 8 : start + 16], "little")
        if len(found) >= stop:
            found[start:stop] = content[start:stop]
        start = content.find(b"GCOL", start + 4)
    return bytes(found)


def damage(path: Path, whole: Path, kind: str, rng: random.Random) -> None:
    """Write a damaged copy of `whole` to `path`."""
    if kind == "checkpoint" and rng.random() < 0.7:
        damage_checkpoint(path, whole, rng)
        return
    content = whole.read_bytes()
    special = {"text": damaged_text, "json": damaged_json, "npy": damaged_npy, "npz": damaged_npz}
    if kind == "h5" and rng.random() < 0.7:
        path.write_bytes(content)
        damage_h5(path, rng)
    elif kind in special and rng.random() < 0.7:
        path.write_bytes(special[kind](content, rng))
    else:
        data = damaged_bytes(content, rng)
        path.write_bytes(with_sound_heaps(data, content) if kind == "h5" else data)


def quietly(num_examples: int) -> settings:
    """Return settings that draw the same examples in every session, without shrinking and time limits."""
    return settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate],
    )


def fuzz(parser: Parser, folder: Path, num_examples: int) -> None:
    """Read `num_examples` damaged files; anything but a UserError or DataError of one line escapes."""
    parser.write(folder)
    path, whole = folder / parser.file, folder / "whole"
    parser.read(path)
    shutil.copyfile(path, whole)

    @quietly(num_examples)
    @given(seed=st.integers(0, 2**64 - 1))
    def one(seed: int) -> None:
        damage(path, whole, parser.kind, random.Random(f"{parser.name} {seed}"))
        if parser.kind == "h5":
            apart(lambda: answered(parser, path))
        else:
            answered(parser, path)

    one()


def answered(parser: Parser, path: Path) -> None:
    """Read a damaged file: it is taken, or refused in one line."""
    try:
        parser.read(path)
    except (DataError, UserError) as error:
        assert "\n" not in str(error) and len(str(error)) > 10


def apart(call: Callable[[], None]) -> None:
    """Call in a forked process, and fail as it fails.

    A damaged HDF5 file may leave the memory of the library damaged, and a later file of the same process
    would crash for it. Users read one file.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            call()
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-20_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    assert status == 0 and not said, said or f"the reader ended with signal {os.WTERMSIG(status)}"
