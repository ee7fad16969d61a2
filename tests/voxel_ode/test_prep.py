"""Preparation: what is written, in which chunks; interrupted runs end with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from common.errors import DataError, UserError
from common.run import BasicOptions
from tests.voxel_ode.cases_data import NUM_STEPS, SHAPE, config, prepared, truth, write_folder, write_raw
from voxel_ode import prep, prep_file
from voxel_ode.index import patch_starts, read_index
from voxel_ode.prep import prep_data
from voxel_ode.prepped import PreppedSim, active_slabs, open_prepped, open_simulation
from voxel_ode.raw import RawFile

ROOT = Path(__file__).resolve().parents[2]
EXACT = {"compression": "gzip1"}  # lzf repeats the values, not the bytes


def contents(root: Path) -> dict[str, bytes]:
    """Return all files below a folder, without the lock."""
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def equal(a: PreppedSim, b: PreppedSim) -> None:
    """Require two simulations to hold the same."""
    assert (a.shape, a.t_valid, a.units, a.cell_size_m, a.dt_s) == (
        b.shape,
        b.t_valid,
        b.units,
        b.cell_size_m,
        b.dt_s,
    )
    assert (tuple(a.bbox), a.slabs, a.param_names) == (tuple(b.bbox), b.slabs, b.param_names)
    for name in ("static", "masks", "initial"):
        np.testing.assert_array_equal(getattr(a, name)(), getattr(b, name)())
    np.testing.assert_array_equal(a.states(-1, a.t_valid), b.states(-1, b.t_valid))
    for name in ("params", "scalars", "well_features"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("sign", "rate_kg_s", "cells", "weight", "cell_well"):
        np.testing.assert_array_equal(getattr(a.wells, name), getattr(b.wells, name))


def test_a_prepped_file_is_the_raw_one(tmp_path: Path):
    """Written and read back, loaded into memory, or made in memory from the raw file: the same simulation."""
    root = prepared(tmp_path)
    raw = PreppedSim.from_raw(tmp_path / "raw" / "v2.4_0003.h5")
    path = root / "train" / "v2.4_0003.prepped.h5"
    equal(open_prepped(path), raw)
    equal(open_prepped(path).load(), raw)
    assert open_prepped(path).name == raw.name == "v2.4_0003"
    assert open_simulation(path).source_sha256 and not open_simulation(raw.path).source_sha256
    box = (slice(2, 6), slice(1, 5), slice(0, 4))
    np.testing.assert_array_equal(open_prepped(path).states(1, 3, box), raw.states(1, 3)[(..., *box)])


def test_layout_and_split(tmp_path: Path):
    """Datasets, chunks, filters and attributes are those of the format; the first run is test, then val."""
    root = prepared(tmp_path)
    assert (root / "test" / "v2.4_0001.prepped.h5").is_file()
    assert (root / "val" / "v2.4_0002.prepped.h5").is_file()
    with h5py.File(root / "train" / "v2.4_0003.prepped.h5") as file:
        data = file["outputs_grid"]
        assert data.shape == (NUM_STEPS, 2, *SHAPE) and data.chunks == (2, 2, *SHAPE)
        assert data.compression == "lzf" and data.shuffle and data.fletcher32 and data.fillvalue == -999
        assert file["static"].shape == (11, *SHAPE) and file["masks"].dtype == np.uint8
        assert file["well_features"].shape == (NUM_STEPS + 1, 6) and file["wells/cells"].shape == (4, 4)
        assert file.attrs["T_valid"] == NUM_STEPS and tuple(file.attrs["slabs"][0]) == (1, SHAPE[0] - 1)
    listed = json.loads((root / "manifest.json").read_text())
    assert [f["split"] for f in listed["files"]] == ["train", "train", "val", "test"]


def test_chunks_without_active_cells_are_not_stored(tmp_path: Path):
    """Empty chunks take no room and read as -999, masks as 0."""
    case = truth(0, (40, 6, 5))
    for grid in (case.active, case.flow):
        grid[8:] = False
    case.grids["IsActive"] = case.active.astype(np.uint8)
    write_raw(tmp_path / "raw" / "v_0001.h5", case)
    flags = config(tmp_path / "raw", tmp_path / "out")
    with RawFile(tmp_path / "raw" / "v_0001.h5") as raw:
        prep_file.write_prepped(raw, tmp_path / "p.h5", flags, "")
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["outputs_grid"].id.get_num_chunks() == NUM_STEPS // 2
        assert file["static"].id.get_num_chunks() == 1
    sim = open_prepped(tmp_path / "p.h5")
    assert (sim.states(0, 2)[:, :, 16:] == -999).all() and (sim.masks()[:, 8:] == 0).all()
    assert active_slabs(case.active) == [(1, 8)]


def test_a_file_of_ten_channels_gets_depth(tmp_path: Path):
    """Statics without Depth load with it."""
    root = prepared(tmp_path)
    path = root / "train" / "v2.4_0003.prepped.h5"
    expected = open_prepped(path).static()
    with h5py.File(path, "r+") as file:
        ten = file["static"][:10]
        del file["static"]
        file["static"] = ten
    np.testing.assert_array_equal(open_prepped(path).static(), expected)


def values_of(root: Path) -> dict[str, Any]:
    """Return all files below a folder but the lock: HDF5 files as their values, others as their bytes."""
    found: dict[str, Any] = contents(root)
    for name in found:
        if name.endswith(".h5"):
            with h5py.File(root / name) as file:
                tables: dict[str, Any] = {}
                file.visititems(
                    lambda key, node, tables=tables: tables.update(
                        {key: (node.dtype, node.shape, node[()].tobytes())}
                        if isinstance(node, h5py.Dataset)
                        else {}
                    )
                )
                found[name] = tables | {"attributes": {k: str(v) for k, v in file.attrs.items()}}
    return found


def test_lzf_repeats_every_value(tmp_path: Path):
    """The default compression gives equal values, attributes and other files with any number of processes."""
    raw = write_folder(tmp_path / "raw")
    prep_data(config(raw, tmp_path / "a"), BasicOptions())
    prep_data(config(raw, tmp_path / "b", workers=2), BasicOptions())
    first = values_of(tmp_path / "a")
    assert first == values_of(tmp_path / "b")
    assert sum("outputs_grid" in tables for tables in first.values() if isinstance(tables, dict)) == 4


def test_workers_and_interruption_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processes write what one writes; a run stopped after a file goes on to the same bytes."""
    raw = write_folder(tmp_path / "raw")
    prep_data(config(raw, tmp_path / "a", **EXACT), BasicOptions())
    prep_data(config(raw, tmp_path / "b", workers=2, **EXACT), BasicOptions())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return prep_file.write_prepped(*arguments)

    monkeypatch.setattr(prep, "write_prepped", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prep_data(config(raw, tmp_path / "c", **EXACT), BasicOptions())
    assert len(contents(tmp_path / "c")) == 2
    prep_data(config(raw, tmp_path / "c", **EXACT), BasicOptions())
    assert len(calls) == 5  # the first two were kept
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    prep_data(config(raw, tmp_path / "c", **EXACT), BasicOptions())
    assert len(calls) == 5 and contents(tmp_path / "a") == contents(tmp_path / "c")


WRITER = """
import sys
from pathlib import Path
from voxel_ode.config_prep import PrepConfig
from voxel_ode.prep_file import write_prepped
from voxel_ode.raw import RawFile
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
with RawFile(raw) as opened:
    print("ready", flush=True)
    while True:
        write_prepped(opened, out, PrepConfig(input_root=raw.parent), "x")
"""


def test_a_kill_while_writing_leaves_no_partial_file(tmp_path: Path):
    """SIGKILL at some moment leaves no file or a whole one; the next run clears what was begun."""
    raw = write_raw(tmp_path / "raw" / "v_0001.h5", truth())
    out = tmp_path / "out" / "p.h5"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(raw), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    if out.exists():
        assert open_prepped(out).load().t_valid == NUM_STEPS
    prep.remove_stale_temporaries(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    """A damaged chunk fails its check sum and names the file."""
    path = prepared(tmp_path) / "train" / "v2.4_0003.prepped.h5"
    with h5py.File(path) as file:
        place = file["outputs_grid"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        open_prepped(path).states(0, 1)


def test_corrupt_files_are_left_out_or_stop_a_strict_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A cut file, one with a hole and one with another number of parameters are skipped, by name."""
    raw = write_folder(tmp_path / "raw", 5)
    (raw / "v2.4_0006.h5").write_bytes(b"no HDF5")
    case = truth(7)
    case.states[2, 1, 3, 3, 3] = np.nan
    write_raw(raw / "v2.4_0007.h5", case)
    case = truth(8)
    case.params = np.zeros(3)
    write_raw(raw / "v2.4_0008.h5", case)
    made = prep_data(config(raw, tmp_path / "out"), BasicOptions())
    assert (made["train"], made["val"], made["test"]) == (3, 1, 1)
    for name in ("0006", "0007", "0008"):
        assert not list((tmp_path / "out").rglob(f"*{name}*"))
    with pytest.raises(DataError, match="0006"):
        prep_data(config(raw, tmp_path / "strict", strict=True), BasicOptions())


def test_mixed_units_are_refused(tmp_path: Path):
    """A folder with an SI and a field file names both."""
    raw = write_folder(tmp_path / "raw", 3)
    write_raw(raw / "v2.4_0004.h5", truth(4), units="field")
    with pytest.raises(DataError, match=r"0004.*0001"):
        prep_data(config(raw, tmp_path / "out"), BasicOptions())


def test_units_of_the_files_do_not_change_the_result(tmp_path: Path):
    """Statistics and index of the same cases in SI and field units agree."""
    si, field = prepared(tmp_path / "si"), prepared(tmp_path / "field", raw={"units": "field"})
    a, b = (json.loads((root / "stats.json").read_text()) for root in (si, field))
    for group in ("mean", "std"):
        for name in ("static", "grid", "scalar"):
            np.testing.assert_allclose(a[group][name], b[group][name], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(a["delta_rms"], b["delta_rms"], rtol=1e-5)
    assert (si / "index_train.jsonl").read_bytes() == (field / "index_train.jsonl").read_bytes()


def test_too_few_simulations_suggest_numbers(tmp_path: Path):
    """Fewer than num_test + num_val + 1 is wrong use, told before anything is read; explicit runs work."""
    raw = write_folder(tmp_path / "raw", 4)
    with pytest.raises(UserError, match="--num_test 1 --num_val 1"):
        prep_data(config(raw, tmp_path / "out", num_test=5, num_val=2), BasicOptions())
    with pytest.raises(UserError, match="run 9"):
        prep_data(config(raw, tmp_path / "out", test_runs=(9,)), BasicOptions())
    made = prep_data(config(raw, tmp_path / "out", test_runs=(3,), val_runs=(1,)), BasicOptions())
    assert made["train"] == 2 and (tmp_path / "out" / "test" / "v2.4_0003.prepped.h5").is_file()


def test_other_flags_need_overwrite(tmp_path: Path):
    """Another dtype or patch is refused in the same folder, and replaces everything with --overwrite."""
    root = prepared(tmp_path)
    for flags in ({"dtype": "float64"}, {"patch_size": (3, 3, 3)}):
        with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
            prep_data(config(tmp_path / "raw", root, **flags), BasicOptions())
    prep_data(config(tmp_path / "raw", root, dtype="float64"), BasicOptions(overwrite=True))
    with h5py.File(root / "train" / "v2.4_0003.prepped.h5") as file:
        assert file["outputs_grid"].dtype == np.float64


def test_dry_run_writes_nothing(tmp_path: Path):
    """--dry_run checks the folder and says the split."""
    raw = write_folder(tmp_path / "raw")
    made = prep_data(config(raw, tmp_path / "out"), BasicOptions(dry_run=True))
    assert made["train"] == 2 and not (tmp_path / "out").exists()


def test_index_places(tmp_path: Path):
    """Patches start at 0, s, 2s .. and the last possible place; every state but the last has each patch."""
    assert patch_starts(326, 32, 8)[-2:] == [288, 294]
    counts = [len(patch_starts(n, 32, 8)) for n in (326, 70, 76)]
    assert counts == [38, 6, 7] and np.prod(counts) == 1596
    assert patch_starts(5, 5, 3) == [0]
    root = prepared(tmp_path, patch_size=(4, 9, 4))  # longer than the grid: shrinks
    index = read_index(root / "index_train", root)
    assert set(map(tuple, index.box[:, 2:4].tolist())) == {(0, SHAPE[1])}
    assert sorted(set(index.t.tolist())) == list(range(NUM_STEPS - 1))
    assert index.num_bytes <= 32 * len(index)


def test_jsonl_alone_says_the_same_as_the_arrays(tmp_path: Path):
    """Without the .npz, or with one made for another .jsonl, activity and wells are worked out again."""
    root = prepared(tmp_path)
    both = read_index(root / "index_train", root)
    (root / "index_train.npz").rename(root / "aside")
    alone = read_index(root / "index_train", root)
    sims = [open_prepped(root / name) for name in both.sim_paths]
    for name in ("sim", "t", "box", "active_fraction", "activity", "wells_complete", "has_well"):
        np.testing.assert_array_equal(getattr(both, name), getattr(alone, name))
    for i in range(0, len(both), 7):
        box, sim = both.slices(i), sims[both.sim[i]]
        active = sim.masks(box)[0] > 0
        change = np.diff(sim.states(int(both.t[i]), int(both.t[i]) + 2, box)[:, 1], axis=0)[0][active]
        assert both.active_fraction[i] == pytest.approx(active.mean(), rel=1e-6)
        assert both.activity[i] == pytest.approx(np.sqrt((change.astype(float) ** 2).mean()), rel=1e-5)
        assert both.wells_complete[i] == sim.wells.inside(box).all()
    lines = (root / "index_train.jsonl").read_text().splitlines(keepends=True)
    (root / "index_train.jsonl").write_text("".join(lines[:5]))
    (root / "aside").rename(root / "index_train.npz")
    assert len(read_index(root / "index_train", root)) == 5


BAD_LINES = {
    "missing file": ('{"sim_path": "train/none.h5", "t": 0', "none.h5"),
    "late": ('{"sim_path": "train/v2.4_0003.prepped.h5", "t": 3', "t 3"),
    "no JSON": ('{"sim_path": ', "line 1"),
    "no number": ('{"sim_path": "train/v2.4_0003.prepped.h5", "t": "x"', "line 1"),
    "too large": ('{"sim_path": "train/v2.4_0003.prepped.h5", "t": 99999', "line 1"),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_index_lines_are_named(tmp_path: Path, what: str):
    """An index that names missing files, states or nonsense is refused."""
    root = prepared(tmp_path, index_format="jsonl")
    start, word = BAD_LINES[what]
    path = root / "index_train.jsonl"
    path.write_text(start + ', "z0": 0, "z1": 4, "y0": 0, "y1": 4, "x0": 0, "x1": 4}\n')
    with pytest.raises(DataError, match=word):
        read_index(root / "index_train", root)


def test_bad_index_boxes_and_arrays_are_named(tmp_path: Path):
    """Cells beyond the grid, and damaged .npz files, are refused."""
    root = prepared(tmp_path)
    path = root / "index_train.jsonl"
    box = {"z0": 0, "z1": SHAPE[0] + 1, "y0": 0, "y1": 4, "x0": 0, "x1": 4}
    path.write_text(json.dumps({"sim_path": "train/v2.4_0003.prepped.h5", "t": 0, **box}))
    with pytest.raises(DataError, match="within"):
        read_index(root / "index_train", root)
    path.unlink()
    npz = root / "index_train.npz"
    with np.load(npz) as stored:
        columns = dict(stored)
    np.savez(npz, **{**columns, "activity": columns["activity"] + 1j})
    with pytest.raises(DataError, match=r"index_train\.npz: activity is complex"):
        read_index(root / "index_train", root)
    np.savez(npz, **{**columns, "sim": np.int32(0)})
    with pytest.raises(DataError, match=r"index_train\.npz: sim is int32 of 0 dimensions"):
        read_index(root / "index_train", root)
    npz.write_bytes(npz.read_bytes()[:200])
    with pytest.raises(DataError, match=r"index_train\.npz"):
        read_index(root / "index_train", root)
