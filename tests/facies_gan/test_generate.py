"""generate: files in every format, hard data of every source, sets that grow, ranks, what is refused."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, UserError
from common.run import MachineOptions
from facies_gan import infer
from facies_gan.config_generate import GenerateConfig
from facies_gan.grdecl import read_grdecl
from facies_gan.gslib import read_grid, write_geoeas, write_grid
from facies_gan.images import read_rgb
from facies_gan.infer import generate
from facies_gan.model_files import load
from facies_gan.outputs import read_csv
from facies_gan.train import train
from facies_gan.wells import WellSet
from tests.facies_gan.cases_gan import bands, enliven_run, options, palette, run_options, trained, write_image
from tests.toy_runs import differences, fork
from tests.toy_runs import load as read

QUIET = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run trained for an instant on a map of codes 0 and 128 with hard data; its data are gone."""
    folder = tmp_path_factory.mktemp("model")
    grid = folder / "ti.sgems"
    write_grid(grid, np.array([0, 128])[bands()])
    labels = bands()
    cells = [(3, 5), (20, 31), (31, 0)]
    rows = np.array([[c + 1, 32 - r, 1, 128 * labels[r, c]] for r, c in cells], dtype=float)
    write_geoeas(folder / "wells.dat", "wells", ["x", "y", "z", "facies"], rows)
    run = trained(folder, training_image=grid, hard_data=folder / "wells.dat", num_iter=1)
    enliven_run(run)
    grid.unlink()
    (folder / "wells.dat").unlink()
    shutil.rmtree(folder / "cache")
    return run


def make(model: Path, out: Path, *, seed: int = 0, overwrite: bool = False, **changes: Any) -> dict[str, Any]:
    """Generate and return the summary."""
    changes = {"how_many": 2, "size": (26, 30), **changes}
    config = GenerateConfig(model_path=model, out_path=out, **changes)
    return generate(config, MachineOptions(seed=seed, overwrite=overwrite, **QUIET))


def stack(out: Path) -> np.ndarray:
    """Return realisations.npy."""
    return np.load(out / "realisations.npy", allow_pickle=False)


def test_files_of_a_set(model: Path, tmp_path: Path):
    """All formats hold the same labels, in the codes of the training data; maps are those of the set."""
    out = tmp_path / "out"
    flags = {"plot_well_mask": True, "comparison_plots": True, "plot_mds": True, "rec": True, "wells": 2}
    summary = make(model, out, how_many=3, formats=("png,npy", "gslib", "grdecl"), size=(), **flags)
    labels = stack(out)
    assert labels.shape == (3, 32, 40) and labels.dtype == np.uint8
    for i in range(3):
        name = out / "realisations" / f"real_{i:05d}"
        assert np.array_equal(np.load(name.with_suffix(".npy"), allow_pickle=False), labels[i])
        rgb, _ = read_rgb(name.with_suffix(".png"))
        assert np.array_equal(rgb, palette().to_rgb(labels[i]))
        codes = read_grid(name.with_suffix(".gslib")).codes[0][::-1]
        assert np.array_equal(codes, np.array([0, 128])[labels[i]])
        assert read_grdecl(name.with_suffix(".grdecl")).codes.size == labels[i].size
    assert (out / "realisations/real_00000.gslib").read_text().startswith("40 32 1\n")
    probability = np.load(out / "probability.npy", allow_pickle=False)
    np.testing.assert_allclose(probability[1], labels.mean(axis=0), atol=1e-6)
    entropy = np.load(out / "entropy.npy", allow_pickle=False)
    assert entropy[(labels[0] == labels[1]) & (labels[0] == labels[2])].max() == 0
    rows = read_csv(out / "summary.csv")
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[1]["proportion_facies 1"] == pytest.approx(labels[1].mean(), rel=1e-5)
    assert all(row["accuracy_after_injection"] == 1 for row in rows)
    assert summary["num_data"] == 2 and json.loads((out / "summary.json").read_text())["how_many"] == 3
    for name in ("well_mask", "comparison", "mds", "entropy", "most_likely", "probability_facies_1"):
        assert (out / f"{name}.png").is_file() and f"{name}.png" in (out / "index.html").read_text()
    assert list((out / "rebuilt").glob("*.npy")) and 0 < summary["rebuilt"]["ti"] <= 1


def test_a_set_does_not_depend_on_how_it_is_made(model: Path, tmp_path: Path):
    """Batches of 1 and 8, tiles, and a set made in two parts give the same files."""
    first = make(model, tmp_path / "a", how_many=5, hard_data=points(tmp_path))
    whole = stack(tmp_path / "a")
    assert 0.1 < whole.mean() < 0.9
    make(model, tmp_path / "b", how_many=5, hard_data=points(tmp_path), batch_size=1, tile=16)
    assert np.array_equal(stack(tmp_path / "b"), whole)
    make(model, tmp_path / "c", how_many=3, hard_data=points(tmp_path))
    both = make(model, tmp_path / "c", how_many=2, hard_data=points(tmp_path), first_index=3)
    assert np.array_equal(stack(tmp_path / "c"), whole)
    assert both["blending"] == pytest.approx(first["blending"]) and first["blending"]["seam_ratio"] > 0
    for name in ("probability.npy", "summary.csv", "entropy.npy", "most_likely.png"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    make(model, tmp_path / "d", how_many=1, hard_data=points(tmp_path), first_index=3)
    assert np.array_equal(stack(tmp_path / "d")[0], whole[3])
    make(model, tmp_path / "e", how_many=1, seed=1, hard_data=points(tmp_path))
    assert not np.array_equal(stack(tmp_path / "e")[0], whole[0])


def points(folder: Path, facies: int = 128) -> Path:
    """Write two data of the grid of 26 x 30 cells as CSV: rows 4 and 25, columns 7 and 0."""
    path = folder / "points.csv"
    path.write_text(f"col,row,facies\n7,4,{facies}\n0,25,0\n")
    return path


def test_sources_of_data(model: Path, tmp_path: Path):
    """Data come from CSV, GEO-EAS, an image, or the model's own wells, and all are honoured."""
    make(model, tmp_path / "csv", hard_data=points(tmp_path))
    assert (stack(tmp_path / "csv")[:, [4, 25], [7, 0]] == [1, 0]).all()
    table = np.array([[8.0, 22.0, 1.0, 128.0], [1.0, 1.0, 1.0, 0.0]])
    write_geoeas(tmp_path / "wells.dat", "t", ["x", "y", "z", "facies"], table)
    make(model, tmp_path / "dat", hard_data=tmp_path / "wells.dat")
    assert np.array_equal(stack(tmp_path / "dat"), stack(tmp_path / "csv"))
    colours = np.full((26, 30, 3), 77, dtype=np.uint8)
    colours[4, 7], colours[25, 0] = 255, 0
    from facies_gan.images import write_png

    write_png(tmp_path / "wells.png", colours)
    make(model, tmp_path / "png", wells_png=tmp_path / "wells.png", well_background=(77, 77, 77))
    assert np.array_equal(stack(tmp_path / "png"), stack(tmp_path / "csv"))
    make(model, tmp_path / "own", well_ids=(0, 1, 2), size=())
    wells = load(model).card.sections[0].wells
    assert len(wells) == 3 and all(wells.matches(grid).all() for grid in stack(tmp_path / "own"))
    assert make(model, tmp_path / "some", wells=1, size=())["num_data"] == 1
    below = make(model, tmp_path / "z", hard_data=tmp_path / "wells.dat", z_down=True)
    assert below["num_data"] == 2 and stack(tmp_path / "z")[0, 21, 7] == 1


def test_grid_of_a_file(model: Path, tmp_path: Path):
    """--grid_from takes size, origin and cell size, and data in its coordinates land in their cells."""
    (tmp_path / "grid.sgems").write_text("18 14 1 100 200 0 10 20 1\n1\nfacies\n" + "0\n" * 252)
    rows = np.array([[125.0, 475.0, 0.5, 128.0]])  # column 2, row 13 from the bottom = the top one
    write_geoeas(tmp_path / "wells.dat", "t", ["x", "y", "z", "facies"], rows)
    how = {"grid_from": tmp_path / "grid.sgems", "size": (), "formats": ("gslib", "npy")}
    make(model, tmp_path / "out", hard_data=tmp_path / "wells.dat", **how)
    assert stack(tmp_path / "out").shape == (2, 14, 18) and (stack(tmp_path / "out")[:, 0, 2] == 1).all()
    first = (tmp_path / "out/realisations/real_00000.gslib").read_text().splitlines()[0]
    assert [float(v) for v in first.split()] == [18, 14, 1, 100, 200, 0, 10, 20, 1]


def test_frame_and_noise_flags(model: Path, tmp_path: Path):
    """Origin, cell size, grid dimensions and column place the data; the noise's scale sets the spread."""
    (tmp_path / "points.csv").write_text("x,y,facies\n35,61,128\n")
    frame = {"origin": (5.0, 1.0, 1.0), "cell_size": (10.0, 4.0, 1.0), "hard_data": tmp_path / "points.csv"}
    make(model, tmp_path / "frame", **frame)
    assert (stack(tmp_path / "frame")[:, 25 - 15, 3] == 1).all()
    values = ["0 1"] * (14 * 18)
    (tmp_path / "grid").write_text("\n".join(["A title", "2", "a", "b", *values]) + "\n")
    how = {"grid_from": tmp_path / "grid", "grid_dims": (18, 14, 1), "variable": "b", "size": ()}
    make(model, tmp_path / "grid_out", **how)
    assert stack(tmp_path / "grid_out").shape == (2, 14, 18)
    for missing in ({"grid_dims": ()}, {"variable": "c"}):
        with pytest.raises(DataError, match="--grid_dims|variable"):
            make(model, tmp_path / "bad", **{**how, **missing})
    spread = []
    for number, scale in enumerate((0.0, 1.0)):
        make(model, tmp_path / f"n{number}", noise_scale=scale)
        spread.append((stack(tmp_path / f"n{number}")[0] != stack(tmp_path / f"n{number}")[1]).mean())
    assert spread[0] == 0 < spread[1]
    make(model, tmp_path / "fine", vary_from_scale=2)
    fine = stack(tmp_path / "fine")
    assert np.array_equal(fine[0], stack(tmp_path / "n1")[0]) and 0 < (fine[0] != fine[1]).mean() < spread[1]


def test_larger_grids(model: Path, tmp_path: Path):
    """A grid of four times the training size each way is made in tiles, data included."""
    labels = np.random.default_rng(0).integers(0, 2, (130, 170)).astype(np.uint8)
    wells = WellSet.from_columns(labels, [11, 160])
    table = [
        [c + 1, 130 - r, 1, 128 * f] for r, c, f in zip(wells.rows, wells.cols, wells.facies, strict=True)
    ]
    write_geoeas(tmp_path / "wells.dat", "t", ["x", "y", "z", "facies"], np.array(table, dtype=float))
    make(model, tmp_path / "out", size=(130, 170), tile=64, how_many=1, hard_data=tmp_path / "wells.dat")
    assert wells.matches(stack(tmp_path / "out")[0]).all()


def test_refusals(model: Path, tmp_path: Path):
    """What cannot work ends with one line that names the flag or file and says what to do."""
    out = tmp_path / "out"
    make(model, out)
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, UserError, "holds realisations; extend them with --first_index"),
        ({"first_index": 5}, UserError, "use --first_index 2, or"),
        ({"first_index": 2, "noise_scale": 2.0}, UserError, "noise_scale 1.0, these have 2.0"),
    ]
    for changes, kind, text in bad:
        with pytest.raises(kind, match=text):
            make(model, out, **changes)
    (tmp_path / "far.csv").write_text("col,row,facies\n700,4,0\n")
    (tmp_path / "code.csv").write_text("col,row,facies\n7,4,3\n")
    (tmp_path / "two.csv").write_text("col,row,facies\n7,4,0\n7,4,128\n")
    np.save(tmp_path / "seismic.npy", np.zeros((26, 30), dtype=np.float32))
    bad = [
        (
            {"hard_data": tmp_path / "far.csv"},
            DataError,
            "none of its 1 data lies inside.*--allow_unconditioned",
        ),
        (
            {"hard_data": tmp_path / "code.csv"},
            DataError,
            "facies codes 3 are unknown, expected one of 0, 128",
        ),
        ({"hard_data": tmp_path / "two.csv"}, DataError, "data 1 .*and 2 .*lie in one cell"),
        ({"hard_data": points(tmp_path), "wells": 3}, UserError, "--wells 3: .* has 2 wells"),
        ({"wells": 9}, UserError, "--wells 9: 3 wells are stored"),
        ({"well_sections": ("nowhere",)}, UserError, "--well_sections nowhere"),
        ({"well_ids": (3,)}, UserError, "--well_ids 3: expected 0 to 2"),
        ({"seismic": tmp_path / "seismic.npy"}, UserError, "trained without seismic"),
        ({"vary_from_scale": 3}, UserError, "the model has scales 0 to 2"),
    ]
    for changes, kind, text in bad:
        with pytest.raises(kind, match=text):
            make(model, tmp_path / "other", **changes)
    assert not (tmp_path / "other").exists()
    assert make(model, out, overwrite=True, hard_data=tmp_path / "far.csv", allow_unconditioned=True)
    wrong = ({"formats": ("tiff",)}, {"halo": "3"}, {"size": (8, 30)}, {"how_many": 0}, {"tile": 8})
    idle = ({"well_background": (1, 2, 3)}, {"grid_dims": (3, 2, 1)}, {"variable": "facies"})
    for changes in (*wrong, *idle):
        with pytest.raises(ValueError, match="--"):
            GenerateConfig(model_path=model, **changes)


def test_model_without_wells(tmp_path: Path):
    """A model trained with --no_use_wells cannot honour data, and says how to retrain."""
    run = trained(tmp_path, use_wells=False, num_iter=1, plot_facies=False)
    assert not list(run.glob("*/samples"))
    with pytest.raises(UserError, match="without --no_use_wells"):
        make(run, tmp_path / "out", hard_data=points(tmp_path))
    assert make(run, tmp_path / "out")["num_data"] == 0


def test_model_with_seismic(tmp_path: Path):
    """A model trained with seismic asks for it, and listens to it."""
    labels = {stem: bands((24, 30), seed=i) for i, stem in enumerate("ab")}
    (tmp_path / "data/seismic").mkdir(parents=True)
    for stem, grid in labels.items():
        write_image(tmp_path / f"data/facies/{stem}.png", grid)
        np.save(tmp_path / f"data/seismic/{stem}.npy", np.stack([grid * 3.0, 1.0 - grid]).astype(np.float32))
    changes = {"input_path": tmp_path / "data", "cache_dir": tmp_path / "cache", "use_seismic": True}
    train(options(num_iter=1, **changes), run_options(tmp_path / "run"))
    with pytest.raises(UserError, match="trained with seismic"):
        make(tmp_path / "run", tmp_path / "out", size=())
    made = []
    for stem in "ab":
        make(
            tmp_path / "run",
            tmp_path / stem,
            size=(),
            seismic=tmp_path / f"data/seismic/{stem}.npy",
            rec=True,
        )
        made.append(load(tmp_path / "run").card)
    seismic = tmp_path / "data/seismic/b.npy"
    with pytest.raises(UserError, match="holds realisations with seismic"):
        make(tmp_path / "run", tmp_path / "a", size=(), seismic=seismic, first_index=2)
    assert made[0].num_seismic == 2
    np.save(tmp_path / "one.npy", np.zeros((24, 30), dtype=np.float32))
    with pytest.raises(DataError, match="1 channels, the model was trained with 2"):
        make(tmp_path / "run", tmp_path / "out", size=(), seismic=tmp_path / "one.npy")


def on_two_ranks(function: Callable[[], Any], folder: Path, timeout_s: float = 240.0) -> None:
    """Run `function` in two processes that form one group; the first that fails ends both and is quoted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}

    def child(rank: int) -> None:
        faulthandler.dump_traceback_later(0.9 * timeout_s)
        os.environ.update({name: str(v) for name, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
        function()

    outputs = [folder / f"rank{rank}.txt" for rank in range(2)]
    running = {fork(lambda r=rank: child(r), path): path for rank, path in enumerate(outputs)}
    end = time.monotonic() + timeout_s
    failed = ""
    while running and not failed and time.monotonic() < end:
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                path = running.pop(pid)
                failed = f"{path.stem} ended with {status}:\n{path.read_text()}" if status else failed
        time.sleep(0.005)
    for pid in running:  # a rank alone would wait for ever
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not failed, failed
    assert not running, f"still running after {timeout_s} s:\n" + "\n".join(p.read_text() for p in outputs)


def test_two_ranks(model: Path, tmp_path: Path):
    """Two processes train the weights of one with twice the batch, and write the files of one."""
    image = write_image(tmp_path / "image.png")
    base = {"training_image": image, "cache_dir": tmp_path / "cache", "num_iter": 2, "gp_interval": 1}
    train(options(batch_size=4, **base), run_options(tmp_path / "one"))
    make(model, tmp_path / "made_by_one", how_many=5)

    # One group each: a rank that is early could join the group that the other has not left yet.
    on_two_ranks(lambda: train(options(batch_size=2, **base), run_options(tmp_path / "two")), tmp_path)
    on_two_ranks(lambda: make(model, tmp_path / "made_by_two", how_many=5), tmp_path)
    one, two = (read(tmp_path / name / "model.pt")["state_dict"] for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert differences(one, read(model / "model.pt")["state_dict"])
    for name in ("realisations.npy", "probability.npy", "summary.csv", "realisations/real_00003.png"):
        first, second = (tmp_path / f"made_by_{who}" / name for who in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), name
    alone, shared = (json.loads((tmp_path / f"made_by_{n}/summary.json").read_text()) for n in ("one", "two"))
    name = "cells_differing_between_processes"
    assert name not in alone and shared[name] == 0


def test_processes_that_differ_are_told(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """A process that repeats another's realisation counts the cells in which they differ."""
    simulator = load(model)
    config, run = GenerateConfig(model_path=model, how_many=2, size=(26, 30)), MachineOptions(**QUIET)
    plan = infer._plan(config, run, simulator)
    right = next(infer._made(config, run, plan, [1]))[1].labels[0]
    wrong = right.copy()
    wrong[3, 4:9] = 1 - wrong[3, 4:9]
    monkeypatch.setattr(infer.distributed, "world_size", lambda: 2)
    for labels, expected in ((right, 0), (wrong, 5)):
        answers = iter([[(0, None), (1, labels)], [expected, 0]])
        seen: list[Any] = []
        monkeypatch.setattr(
            infer.distributed, "gather_objects", lambda v, a=answers, s=seen: (s.append(v), next(a))[1]
        )
        assert infer._differing_cells(config, run, plan, right) == expected and seen[1] == expected
        assert f"{expected} cells differ" in capsys.readouterr().err


def test_partial_set_leaves_no_stack(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A set that breaks off leaves no realisations.npy and no temporary."""

    def broken(*_: Any, **__: Any) -> Any:
        raise DataError("planted")

    monkeypatch.setattr(infer, "realisations", broken)
    with pytest.raises(DataError, match="planted"):
        make(model, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["realisations"]
