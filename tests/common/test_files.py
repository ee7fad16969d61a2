"""Files survive a kill, a full disk, a second process and folders that cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint as checkpoints
from common import files
from common.checkpoint import Checkpoint
from common.errors import DataError, UserError
from tests.toy_runs import fork, run, wait

KILLS = [40, pytest.param(200, marks=pytest.mark.reliability)]


def signed(number: int) -> bytes:
    """Return 300 kB that prove themselves whole: a digest, then what it is the digest of."""
    body = number.to_bytes(8, "little") * 37_500
    return hashlib.sha256(body).digest() + body


def write_for_ever(folder: Path) -> None:
    """Write one plain file and one checkpoint again and again, as a training that saves at every step."""
    for number in range(1_000_000):
        files.write_bytes(folder / "plain.bin", signed(number))
        weights = {"w": torch.full((10_000,), float(number))}
        checkpoints.save(folder / "last.pt", Checkpoint("toy", "k", {}, {}, weights, step=number))
        checkpoints.link_or_copy(folder / "last.pt", folder / "best.pt")


@pytest.mark.parametrize("kills", KILLS)
def test_kill_leaves_old_or_new(tmp_path: Path, kills: int):
    """SIGKILL at any moment leaves a whole file, and the next start removes what the dead left behind."""
    chance = random.Random(kills)
    files.write_bytes(tmp_path / "plain.bin", signed(0))
    checkpoints.save(tmp_path / "last.pt", Checkpoint("toy", "k", {}, {}, {"w": torch.zeros(10_000)}))
    stale = 0
    for _ in range(kills):
        pid = fork(lambda: write_for_ever(tmp_path))
        time.sleep(chance.uniform(0.01, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        data = (tmp_path / "plain.bin").read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
        for name in ("last.pt", "best.pt"):
            if (tmp_path / name).exists():
                found = checkpoints.load(tmp_path / name)
                assert torch.equal(found.state_dict["w"], torch.full((10_000,), float(found.step)))
        stale += len(files.remove_stale_temporaries(tmp_path))
    assert stale > 0, "no kill hit a write: the test proves nothing"
    assert {p.name for p in tmp_path.iterdir()} <= {"plain.bin", "last.pt", "best.pt"}


def limited(size: int, function) -> int:
    """Run `function` with a file-size limit; a DataError goes to stdout and exits 3."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        function()
    except DataError as error:
        print(error)
        return 3
    return 0


def write_array(path: Path) -> None:
    """Write an array of 1 MB."""
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.zeros(200_000))


def write_hdf5(path: Path) -> None:
    """Write an HDF5 file of 1 MB."""
    import h5py

    with files.atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["x"] = np.zeros(200_000)


def write_weights(path: Path) -> None:
    """Write a checkpoint of 1 MB."""
    checkpoints.save(path, Checkpoint("toy", "k", {}, {}, {"w": torch.zeros(200_000)}))


WRITERS = {
    "bytes": lambda path: files.write_bytes(path, bytes(200_000)),
    "npy": write_array,
    "hdf5": write_hdf5,
    "checkpoint": write_weights,
}


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk(tmp_path: Path, name: str):
    """A write that hits the limit names path and reason, keeps the old file and leaves no temporary."""
    path, said = tmp_path / "out" / "result.bin", tmp_path / "said.txt"
    files.write_bytes(path, b"old")
    assert run(lambda: limited(100_000, lambda: WRITERS[name](path)), said) == 3, said.read_text()
    text = said.read_text()
    assert str(path) in text and "file-size limit of 100000 bytes" in text and text.count("\n") == 1
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["result.bin"]


def test_free_space_is_checked_first(tmp_path: Path):
    """A file that cannot fit is refused before a byte is written."""
    with (
        pytest.raises(DataError, match=r"huge.bin: needs \d+ bytes, the disk is full"),
        files.atomic_path(tmp_path / "huge.bin", needed_bytes=10**18),
    ):
        raise AssertionError("the block must not run")


def test_failure_inside_keeps_the_old_file(tmp_path: Path):
    """A bug in the block passes unchanged; the old file stays and the temporary goes."""
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError("bug")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_lock_admits_one_process(tmp_path: Path):
    """The second process is refused with the first one's pid; the lock vanishes with its holder."""

    def second() -> int:
        try:
            files.FolderLock(tmp_path)
        except UserError as error:
            print(error)
            return 2
        return 0

    said = tmp_path / "said.txt"
    lock = files.FolderLock(tmp_path)
    assert run(second, said) == 2
    assert f"in use by pid {os.getpid()}" in said.read_text() and str(tmp_path) in said.read_text()
    lock.release()
    assert run(second, said) == 0
    assert run(second, said) == 0, "a process that ended without release still holds the lock"


def test_exactly_one_of_many_processes_gets_the_folder(tmp_path: Path):
    """Of four processes that start together one proceeds."""

    def contend() -> int:
        try:
            lock = files.FolderLock(tmp_path)
        except UserError:
            return 2
        time.sleep(0.4)
        lock.release()
        return 0

    codes = [wait(pid) for pid in [fork(contend) for _ in range(4)]]
    assert sorted(codes) == [0, 2, 2, 2]


def test_stale_temporaries(tmp_path: Path):
    """Temporaries of dead processes go; those of live ones and files of users stay."""
    dead = fork(lambda: 0)
    wait(dead)
    (tmp_path / "checkpoints").mkdir()
    old = tmp_path / "checkpoints" / f".last.pt.{dead}.{files._HOST}.part"
    kept = [
        files.temporary_path(tmp_path / "mine.pt"),
        tmp_path / f".a.pt.{dead}.another-host.part",
        tmp_path / ".notes.part",
        tmp_path / "user.part",
    ]
    for path in (old, *kept):
        path.write_bytes(b"x")
    assert files.remove_stale_temporaries(tmp_path) == [old]
    assert all(path.exists() for path in kept)
    old.write_bytes(b"x")
    files.require_writable(tmp_path)  # before a verb writes: what its killed predecessor left goes
    assert not old.exists() and all(path.exists() for path in kept)


def test_folder_that_cannot_be_written(tmp_path: Path):
    """A path below a file, and one the system refuses, are usage errors that name the path."""
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/strata")):
        with pytest.raises(UserError, match="choose another"):
            files.require_writable(folder)
        with pytest.raises(UserError, match=str(folder)):
            files.FolderLock(folder)
    with pytest.raises(UserError, match="below"):
        files.write_text(tmp_path / "file" / "below" / "a.txt", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path):
    """A folder without write permission is a usage error."""
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        files.require_writable(tmp_path)


def test_json_is_valid_json(tmp_path: Path):
    """NaN and infinity become null, NumPy scalars numbers, paths and tuples what JSON has; unicode stays."""
    value = {"a": float("nan"), "b": [np.float32(0.5), float("-inf")], 3: (1, Path("x/y")), "ü": np.int64(4)}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [0.5, None],
        "3": [1, "x/y"],
        "ü": 4,
    }
    assert "ü" in text


def test_odd_names(tmp_path: Path):
    """Spaces, unicode and dots in paths work, relative ones too."""
    path = tmp_path / "a folder" / "größe.α" / "my file.v1.txt"
    files.write_text(path, "x")
    assert path.read_text() == "x" and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"9" * 5000])
def test_read_json_of_damaged_files(tmp_path: Path, content: bytes):
    """Empty, cut, binary, endlessly nested and endlessly long documents are refused with one line."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: no valid JSON .*; make it again"):
        files.read_json(path, "make it again")
    with pytest.raises(DataError, match="cannot be read"):
        files.read_json(tmp_path, "make it again")


def test_texts_that_name_no_file(tmp_path: Path):
    """A name that is too long or holds a zero byte is no file, and no error."""
    (tmp_path / "a").write_text("x")
    assert files.is_file(tmp_path / "a")
    assert not any(files.is_file(tmp_path / name) for name in ("b", "x" * 5000, "a\0b"))
