"""Checkpoints: exact round trips, damage noticed, nothing executed, clear words for whatever is none."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint as checkpoints
from common import distributed
from common.checkpoint import FORMAT, Checkpoint
from common.errors import DataError
from tests.toy_runs import differences

PACKAGES = ("facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")


def sample(package: str = "toy", kind: str = "infer", **changes) -> Checkpoint:
    """Return a small checkpoint with one of everything it may hold."""
    weights = {
        "w": torch.randn(3, 4),
        "half": torch.randn(2).half(),
        "bf16": torch.randn(2).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "complex": torch.randn(2, dtype=torch.complex64),
    }
    config = {"lr": 1e-3, "name": "größe", "sizes": [1, 2], "flag": True, "nothing": None}
    training = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)}}
    made = Checkpoint(
        package, kind, config, {"mean": [1.5]}, weights, training, 12, 2, [{"cpu": torch.ones(2)}]
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the path of a checkpoint."""
    checkpoints.save(tmp_path / "a.pt", sample())
    return tmp_path / "a.pt"


def test_round_trip(tmp_path: Path):
    """What is saved comes back bit for bit, tuples as lists."""
    original = sample()
    checkpoints.save(tmp_path / "a.pt", original)
    found = checkpoints.load(tmp_path / "a.pt", package="toy", kinds=["prep", "infer"])
    expected = checkpoints.plain_tree(dataclasses.asdict(original))
    assert not differences(dataclasses.asdict(found), expected)


def test_anyone_can_read_it(saved: Path):
    """Plain `torch.load(path, weights_only=True)` gives the documented keys and plainly named weights."""
    document = torch.load(saved, weights_only=True)
    keys = {
        "format",
        "package",
        "kind",
        "config",
        "normalization",
        "state_dict",
        "training",
        "step",
        "epoch",
        "rng",
    }
    assert keys <= set(document) and document["format"] == FORMAT
    assert set(document["state_dict"]) == set(sample().state_dict)


def test_only_plain_values_go_in(tmp_path: Path):
    """NumPy scalars that pass for floats become plain; what could not be loaded is refused on saving."""
    checkpoints.save(tmp_path / "a.pt", sample(training={"best": np.float64(0.5), "where": Path("x/y")}))
    training = checkpoints.load(tmp_path / "a.pt").training
    assert training == {"best": 0.5, "where": "x/y"} and type(training["best"]) is float
    for value in (np.zeros(3), {1, 2}, nn.Linear(1, 1), np.int64(3)):
        with pytest.raises(TypeError, match="a checkpoint cannot hold"):
            checkpoints.save(tmp_path / "b.pt", sample(training={"x": value}))
    assert not (tmp_path / "b.pt").exists()


def test_flipped_bits_are_noticed(saved: Path):
    """A flipped bit in the bytes of any weight is noticed by the content's SHA-256."""
    whole = saved.read_bytes()
    weights = torch.load(saved, weights_only=True)["state_dict"]
    for name in ("w", "half", "count"):
        place = whole.find(weights[name].reshape(-1).view(torch.uint8).numpy().tobytes())
        assert place > 0
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="a.pt: .*(damaged|not a readable)"):
            checkpoints.load(saved)
    saved.write_bytes(whole)
    checkpoints.load(saved)


def test_any_flipped_byte_is_safe(saved: Path):
    """A flipped byte anywhere is noticed, or changed nothing that is read: no crash, no wrong content."""
    whole, original = saved.read_bytes(), dataclasses.asdict(checkpoints.load(saved))
    chance, noticed = np.random.default_rng(0), 0
    for place in chance.integers(0, len(whole), 150):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = checkpoints.load(saved)
        except DataError as error:
            assert "a.pt" in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert not differences(dataclasses.asdict(found), original)
    assert noticed > 30


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_cut_off_files(saved: Path, part: float):
    """A file cut anywhere is bad data, with its name and size."""
    data = saved.read_bytes()
    size = int(len(data) * part)
    saved.write_bytes(data[:size])
    with pytest.raises(DataError, match=f"a.pt: not a readable checkpoint .{size} bytes: .+use an older"):
        checkpoints.load(saved)


def test_what_is_no_checkpoint(tmp_path: Path):
    """Missing, a folder, garbage, text, an array or a list: each refused in one line that names the file."""
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "garbage.pt").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.pt").write_text("these are no weights\n" * 100)
    np.save(tmp_path / "array.npy", np.zeros(10))
    (tmp_path / "array.npy").rename(tmp_path / "array.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    torch.save({"format": FORMAT, "package": "toy"}, tmp_path / "partial.pt")
    expected = {
        "missing.pt": "no such checkpoint",
        "folder.pt": "is a folder",
        "garbage.pt": "not|refused",
        "text.pt": "not|refused",
        "array.pt": "not|refused",
        "list.pt": "holds a list, expected a dictionary",
        "bare.pt": "keys .'weight'., expected format",
        "partial.pt": "keys .*state_dict.* missing",
    }
    for name, text in expected.items():
        with pytest.raises(DataError, match=text) as caught:
            checkpoints.load(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message and "\n" not in message and "\x1b" not in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_packages_are_told_apart(tmp_path: Path, suffix: str):
    """Of 5 x 5 pairs of package and checkpoint the 5 that belong together load; else both names are said."""
    for owner in PACKAGES:
        path = tmp_path / f"weights{suffix}"
        if suffix == ".pt":
            checkpoints.save(path, sample(owner))
        else:
            checkpoints.export_safetensors(path, sample(owner))
        load = checkpoints.load if suffix == ".pt" else checkpoints.load_safetensors
        for reader in PACKAGES:
            if reader == owner:
                assert load(path, package=reader).package == owner
                continue
            with pytest.raises(DataError) as caught:
                load(path, package=reader)
            assert owner in str(caught.value) and reader in str(caught.value)


def test_other_kinds_and_formats(tmp_path: Path):
    """Another kind and another version of the format are refused, found and expected both named."""
    path = tmp_path / "a.pt"
    checkpoints.save(path, sample(kind="refine"))
    with pytest.raises(DataError, match="'refine', expected infer or prep"):
        checkpoints.load(path, package="toy", kinds=["infer", "prep"])
    document = {**torch.load(path, weights_only=True), "format": "strata-checkpoint-99"}
    torch.save(document, path)
    with pytest.raises(DataError, match="'strata-checkpoint-99', expected format 'strata-checkpoint-1'"):
        checkpoints.load(path)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "inside"])
def test_nothing_is_executed(tmp_path: Path, how: str):
    """A file that asks for code to be run is refused, and the code does not run."""
    trap, path = tmp_path / "trap", tmp_path / "evil.pt"
    if how == "inside":
        document = {"format": FORMAT, "state_dict": {}, "training": {"x": Payload(trap)}}
        torch.save(document, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Payload(trap)))
    else:
        torch.save(Payload(trap), path, _use_new_zipfile_serialization=how == "zip")
    asked = "no torch file" if how == "pickle" else "it asks for posix.mkdir"
    with pytest.raises(DataError, match=f"evil.pt: refused, .*{asked}"):
        checkpoints.load(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if how in ("zip", "legacy", "inside") else pickle.loads(
        path.read_bytes()
    )
    assert trap.exists(), "the payload is a dud: the test proves nothing"


def test_plain_weights_have_plain_names(monkeypatch: pytest.MonkeyPatch):
    """Weights of wrapped networks have the names of the bare one."""

    class Ddp(nn.Module):  # stands in for DistributedDataParallel, which needs a process group
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    class Compiled(nn.Module):  # stands in for what torch.compile returns, which takes seconds to import
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

    monkeypatch.setattr(distributed, "DistributedDataParallel", Ddp)
    bare = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    wrapped = Compiled(Ddp(Compiled(bare)))
    assert "_orig_mod.module._orig_mod.0.weight" in wrapped.state_dict()
    assert list(checkpoints.plain_weights(wrapped)) == list(bare.state_dict())
    assert distributed.unwrap(wrapped) is bare


def test_a_child_called_module_keeps_its_name():
    """Only the wrappers' prefixes go: a network's own part called `module` stays."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

    assert list(checkpoints.plain_weights(Net())) == ["module.weight", "module.bias"]


def test_safetensors_round_trip(tmp_path: Path):
    """Export and import keep weights, config and normalisation; any reader can read the weights."""
    from safetensors.torch import load_file

    path, original = tmp_path / "w.safetensors", sample()
    checkpoints.export_safetensors(path, original)
    found = checkpoints.load_safetensors(path, package="toy", kinds=["infer"])
    assert not differences(found.state_dict, original.state_dict)
    assert not differences(load_file(path), original.state_dict)
    assert (found.config, found.normalization, found.step) == (original.config, original.normalization, 12)
    assert found.training == {}
    with pytest.raises(DataError, match="is kind 'infer', expected refine"):
        checkpoints.load_safetensors(path, package="toy", kinds=["refine"])


def test_exported_weights_load_as_checkpoints(tmp_path: Path):
    """`load` takes safetensors too: of the package that it expects; of another one both are named."""
    path, original = tmp_path / "w.safetensors", sample()
    checkpoints.export_safetensors(path, original)
    found = checkpoints.load(path, package="toy", kinds=["infer"])
    assert not differences(found.state_dict, original.state_dict) and found.training == {}
    assert checkpoints.load(path).package == "toy"
    with pytest.raises(DataError, match="package 'toy', expected 'other'; use the scripts of toy"):
        checkpoints.load(path, package="other", kinds=["infer"])


def test_file_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file is itself; a folder means the first name that is there, which is said; none is bad data."""
    names = ("best.pt", "models/last.pt")
    with pytest.raises(DataError, match=r"expected in it best\.pt or models/last\.pt; train first"):
        checkpoints.file_of_run(tmp_path, names, "train first")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/last.pt").touch()
    assert checkpoints.file_of_run(tmp_path, names, "") == tmp_path / "models/last.pt"
    assert "is a folder, taking models/last.pt" in capsys.readouterr().err
    (tmp_path / "best.pt").touch()
    assert checkpoints.file_of_run(str(tmp_path), names, "") == tmp_path / "best.pt"
    assert checkpoints.file_of_run(tmp_path / "x.pt", names, "") == tmp_path / "x.pt"


def test_bad_safetensors(tmp_path: Path):
    """Damaged, foreign, empty or missing files are bad data in one line."""
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    checkpoints.export_safetensors(path, sample())
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    for content in (data[:-10], data[:50], b"", b"garbage" * 99, flipped, b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"w\.safetensors"):
            checkpoints.load_safetensors(path, package="toy")
    for metadata in (None, {"a": "b"}, {"format": FORMAT}):
        save_file({"w": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(DataError, match="export it again"):
            checkpoints.load_safetensors(path, package="toy")
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(DataError, match="no such weights file"):
            checkpoints.load_safetensors(missing, package="toy")


def test_links_share_content_but_not_fate(tmp_path: Path):
    """`last` costs no second copy; a new `last` leaves the old file alone; nothing else is left behind."""
    one, two, last = (tmp_path / name for name in ("step1.pt", "step2.pt", "last.pt"))
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    checkpoints.link_or_copy(one, last)
    assert last.samefile(one)
    checkpoints.link_or_copy(one, last)
    checkpoints.link_or_copy(two, last)
    assert one.read_bytes() == b"1" and last.read_bytes() == b"2"
    two.unlink()
    assert last.read_bytes() == b"2"
    assert {p.name for p in tmp_path.iterdir()} == {"step1.pt", "last.pt"}


def test_copy_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a file system without hard links `last` is a copy."""

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.pt").write_bytes(b"1")
    checkpoints.link_or_copy(tmp_path / "a.pt", tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == b"1"
    assert not (tmp_path / "last.pt").samefile(tmp_path / "a.pt")


def test_newest_first_goes_by_number(tmp_path: Path):
    """Step 100 is newer than step 99, whatever the alphabet says."""
    for name in ("step99.pt", "step100.pt", "step5.pt", "best.pt"):
        (tmp_path / name).touch()
    names = [p.name for p in checkpoints.newest_first(tmp_path, "step*.pt")]
    assert names == ["step100.pt", "step99.pt", "step5.pt"]


def test_safe_writing_is_affordable(tmp_path: Path):
    """10 MB with hash, temporary and fsync cost at most three times torch.save (plus a slow disk's 0.2 s)."""
    weights = {"w": torch.randn(2_500_000)}

    def best_of_three(write) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            write()
            times.append(time.perf_counter() - started)
        return min(times)

    def plain() -> None:
        torch.save({"state_dict": weights}, tmp_path / "plain.pt")
        with open(tmp_path / "plain.pt", "rb") as file:
            os.fsync(file.fileno())

    ours = best_of_three(lambda: checkpoints.save(tmp_path / "a.pt", sample(state_dict=weights)))
    assert ours <= 3 * best_of_three(plain) + 0.2
    assert (tmp_path / "a.pt").stat().st_size < 1.01 * (tmp_path / "plain.pt").stat().st_size
