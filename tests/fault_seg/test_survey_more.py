"""Inference beside the plain run: turns, true angles, aligned times, folders, killed runs that go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from common.noise import gaussian
from common.tiles import plan_blended
from fault_seg import survey
from fault_seg.angles import angles_from_normal, normal_from_angles, outer_from_normal
from fault_seg.config_infer import InferConfig
from fault_seg.config_tools import ObjectsConfig
from fault_seg.dataset import normalise_image
from fault_seg.infer import infer, load
from fault_seg.make_objects import chosen_threshold
from fault_seg.maps import Model
from fault_seg.segy import open_segy
from fault_seg.time_tiles import align, overlapping
from fault_seg.true_angles import AngleFrame, angle_frame
from fault_seg.turns import turned, turned_back
from fault_seg.volumes import output_path, read_volume
from tests.fault_seg.cases import QUICK, infer_config, noisy_layers, save_model
from tests.fault_seg.volume_files import make_segy
from tests.launch import ROOT

ATTRIBUTES = ("fsem", "fdip", "fstrike", "rgt", "dhr")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a random network with all heads."""
    return save_model(tmp_path_factory.mktemp("model") / "model.ckpt")


def outputs(prefix: Path, names: tuple[str, ...] = ATTRIBUTES) -> dict[str, np.ndarray]:
    """Read what an inference wrote as npy."""
    return {name: np.load(f"{prefix}.{name}.npy") for name in names}


@pytest.mark.parametrize("turn", range(8))
def test_turns_are_undone_and_move_normals(turn: int):
    """A turned volume turned back is the volume; n n^T turns as the plane it belongs to."""
    x = gaussian((1, 9, 4, 6, 6), 0, "turns", turn)
    assert torch.equal(turned_back(turned(x, turn, slice(3, 9)), turn, slice(3, 9)), x)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, 0.5, -0.8]), dim=0)
    moved = normal[[0, 2, 1]] if turn & 4 else normal.clone()
    moved = moved * torch.tensor([1.0, -1.0 if turn & 1 else 1.0, -1.0 if turn & 2 else 1.0])
    field = outer_from_normal(normal).view(1, 6, 1, 1, 1).expand(1, 6, 4, 6, 6)
    found = turned(field, turn, slice(0, 6))
    torch.testing.assert_close(found[0, :, 0, 0, 0], outer_from_normal(moved))


def test_averaging_turns_commutes_with_turning(model_path: Path):
    """With all eight turns the maps of a turned image are the turned maps, and the spread is above 0."""
    model = load(model_path)
    model.turns = 8
    image = gaussian((1, 1, 16, 16, 16), 0, "tta")
    maps = model.maps(image)
    assert maps.shape[1] == 10 and float(maps[:, -1].mean()) > 1e-4
    for turn in (1, 2, 4, 7):
        again = model.maps(turned(image, turn))
        torch.testing.assert_close(again, turned(maps, turn, slice(1, 7)), atol=2e-5, rtol=0)
    single = replace(model, turns=1)
    assert not torch.allclose(single.maps(turned(image, 1)), turned(single.maps(image), 1, slice(1, 7)))
    poses = torch.stack([turned_back(single.maps(turned(image, t)), t, slice(1, 7)) for t in range(8)])
    torch.testing.assert_close(maps[:, :9], poses.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[:, 9], poses[:, :, 0].std(0, correction=0), atol=1e-5, rtol=0)


def test_tta_writes_the_spread(tmp_path: Path, model_path: Path):
    """--tta 4 writes <output>.fstd; exact tiles agree with the whole then, too."""
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 70)))
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "a", tta=4, rgt=False, dhr=False)
    config = replace(config, overlap="exact", angle_fill="zero")
    assert infer(config, QUICK)["attributes"] == ["fsem", "fdip", "fstrike", "fstd"]
    infer(replace(config, output=str(tmp_path / "b"), block=16), QUICK)
    first, second = (outputs(tmp_path / n, ("fsem", "fstd")) for n in "ab")
    for name in first:
        np.testing.assert_allclose(second[name], first[name], rtol=0, atol=2e-5)
    assert first["fstd"].min() >= 0 and first["fstd"].mean() > 1e-4


def plane_angles(dip: float, strike: float) -> tuple[np.ndarray, np.ndarray]:
    """Return grid angles over 180 as arrays of one voxel."""
    return np.array([dip / 180], np.float32), np.array([strike / 180], np.float32)


def test_confidence_of_the_angles(tmp_path: Path, model_path: Path):
    """--confidence writes the eigenvalue gap of n n^T where there are angles, and needs a head for them."""
    image = noisy_layers((16, 16, 24))
    np.save(tmp_path / "in.npy", image)
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "o", confidence=True)
    assert infer(replace(config, figures=True), QUICK)["units"]["npy"]["fgap"].startswith("confidence")
    found = outputs(tmp_path / "o", ("fsem", "fgap"))
    maps = (
        load(model_path, precision="fp32")
        .maps(torch.from_numpy(normalise_image(image))[None, None])[0]
        .numpy()
    )
    z, y, x = np.argwhere(found["fsem"] >= 0.06)[7]
    zz, yy, xx, zy, zx, yx = maps[1:7, z, y, x]
    values = np.linalg.eigvalsh([[zz, zy, zx], [zy, yy, yx], [zx, yx, xx]])
    assert found["fgap"][z, y, x] == pytest.approx(np.clip(values[2] - values[1], 0, 1), abs=1e-4)
    assert (found["fgap"][found["fsem"] < 0.05] == 0).all() and found["fgap"].max() <= 1
    for path, flags in ((model_path, {"fault": False}), (save_model(tmp_path / "d.ckpt", ("dhr",)), {})):
        with pytest.raises(UserError, match="--confidence: needs fault angles"):
            infer(replace(config, model=str(path), output=str(tmp_path / "p"), **flags), QUICK)


@pytest.mark.parametrize(("dip", "strike"), [(60.0, 30.0), (100.0, 170.0), (45.0, 90.0), (20.0, 0.0)])
def test_true_angles_of_stretched_voxels(dip: float, strike: float):
    """Three points of the plane, in true lengths, give the dip and strike that the frame tells."""
    normal = normal_from_angles(torch.tensor(dip), torch.tensor(strike)).numpy().astype(np.float64)
    sizes = np.array([4.0, 25.0, 12.5])
    basis = np.linalg.svd(normal[None])[2][1:] * sizes  # two directions within the plane, in metres
    true = np.cross(basis[0], basis[1])
    true /= np.linalg.norm(true)
    expected_dip = np.degrees(np.arccos(abs(true[0])))
    found_dip, found_strike = AngleFrame((4.0, 25.0, 12.5)).angles(*plane_angles(dip, strike))
    assert found_dip[0] == pytest.approx(expected_dip, abs=1e-3)
    _, expected_strike = angles_from_normal(torch.from_numpy(true))
    assert abs((found_strike[0] - float(expected_strike) + 90) % 180 - 90) < 1e-3


def test_unset_angles_stay_unset():
    """Where a voxel has no angle, voxel sizes make none."""
    dip, strike = AngleFrame((4.0, 25.0, 12.5)).angles(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert not dip.any() and not strike.any()


def rotated_survey(path: Path, azimuth: float) -> Path:
    """Write a survey whose inline numbers grow 25 m a step to `azimuth`, crosslines 12 m to its right."""
    east, north = np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))

    def fields(il: int, xl: int, _: int) -> dict[tuple[int, int], int]:
        a, b = 25 * (il - 5), 12 * (xl - 20)
        x, y = a * east + b * north, a * north - b * east
        return {(181, 4): round(100 * x) + 10**6, (185, 4): round(100 * y) + 10**6, (71, 2): -100}

    return make_segy(path, noisy_layers((17, 6, 8)), fields=fields)


@pytest.mark.parametrize("azimuth", [0.0, 30.0, 110.0])
def test_strike_from_north(tmp_path: Path, azimuth: float):
    """A plane that strikes along the inline axis strikes towards the axis' azimuth, whatever the grid."""
    config = InferConfig(input="x", north=True)
    with open_segy(rotated_survey(tmp_path / "s.sgy", azimuth)) as volume:
        frame = angle_frame(config, volume)
        for strike, expected in ((0.0, azimuth), (90.0, azimuth + 90)):
            _, found = frame.angles(*plane_angles(70.0, strike))
            assert abs((found[0] - expected + 90) % 180 - 90) < 0.1
        _, found = frame.angles(*plane_angles(70.0, 45.0))  # one inline and one crossline step
        expected = azimuth + np.degrees(np.arctan2(12, 25))
        assert abs((found[0] - expected + 90) % 180 - 90) < 0.1


def test_velocity_sets_the_voxel_sizes(tmp_path: Path):
    """2000 m/s and 2 ms give samples of 2 m, trace distances come from headers; other formats are refused."""
    with open_segy(rotated_survey(tmp_path / "s.sgy", 20.0)) as volume:
        frame = angle_frame(InferConfig(input="x", velocity=2000.0), volume)
        np.testing.assert_allclose(frame.voxel, (2.0, 12.0, 25.0), rtol=1e-3)
    np.save(tmp_path / "a.npy", noisy_layers((16, 8, 8)))
    from fault_seg.volumes import open_volume

    with open_volume(tmp_path / "a.npy") as volume:
        for flags in ({"velocity": 2000.0}, {"north": True}):
            with pytest.raises(UserError, match="expected SEG-Y"):
                angle_frame(InferConfig(input="x", **flags), volume)
    with pytest.raises(ValueError, match="--velocity sets the voxel sizes"):
        InferConfig(input="x", velocity=2000.0, dz=3.0)


def test_voxel_sizes_reach_the_files(tmp_path: Path, model_path: Path):
    """Degrees are true angles with --dz --dy --dx; over180 stays with the grid; the side-car says so."""
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 16)))
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "a", format=("npy", "raw"), rgt=False)
    infer(config, QUICK)
    infer(replace(config, output=str(tmp_path / "b"), dz=2.0, dy=10.0, dx=10.0), QUICK)
    raw = [read_volume(output_path(tmp_path / n, "fdip", "raw")) for n in "ab"]
    np.testing.assert_array_equal(*raw)
    plain, true = (outputs(tmp_path / n, ("fdip",))["fdip"] for n in "ab")
    known = np.isfinite(plain) & (plain > 5) & (plain < 85)
    steep = np.degrees(np.arctan(np.tan(np.radians(plain[known])) * 0.2))
    np.testing.assert_allclose(true[known], steep, atol=0.05)
    assert json.loads((tmp_path / "b.json").read_text())["angles"]["voxel_sizes"] == [2.0, 10.0, 10.0]
    assert sum(json.loads((tmp_path / "b.json").read_text())["strike_rose"]) == np.isfinite(plain).sum()


def test_times_of_tiles_are_aligned():
    """Tiles that know a time up to scale and offset give it back up to one scale and offset."""
    shape = (40, 24, 50)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    time_ = z + 0.3 * y + 2 * np.sin(0.1 * x)
    tiles = plan_blended(shape, 16, 4)
    assert len(tiles) > 10 and next(overlapping(tiles))[0] == 0
    rng = np.random.default_rng(0)
    own = {t.index: (rng.uniform(0.5, 2), rng.uniform(-9, 9)) for t in tiles}
    found = align(tiles, lambda t: own[t.index][0] * time_[t.core] + own[t.index][1])
    scales = np.array([found[t.index][0] * own[t.index][0] for t in tiles])
    shifts = np.array([found[t.index][0] * own[t.index][1] + found[t.index][1] for t in tiles])
    assert scales.std() < 1e-2 * scales.mean()
    np.testing.assert_allclose(shifts, shifts[0], atol=0.5)
    assert found[:, 0].mean() == pytest.approx(1) and abs(found[:, 1].mean()) < 1e-6


def test_a_tile_without_neighbours_keeps_its_time():
    """Without overlaps nothing tells scale or offset, and they stay 1 and 0."""
    tiles = plan_blended((16, 16, 16), 16, 0)
    np.testing.assert_allclose(align(tiles, lambda t: np.ones((16, 16, 16))), [[1, 0]], atol=1e-9)


def test_mtl_times_are_blended_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Where the volume does not fit, times of mtl tiles are brought to one scale before they are blended."""
    image = noisy_layers((16, 16, 48))
    np.save(tmp_path / "in.npy", image)
    path = save_model(tmp_path / "mtl.ckpt", layout="mtl")
    places = iter(range(99))

    def maps(_: Model, tile: torch.Tensor) -> torch.Tensor:
        number = next(places)
        z = torch.linspace(0, 1, tile.shape[2]).view(1, 1, -1, 1, 1).expand_as(tile)
        result = torch.zeros(1, 9, *tile.shape[2:])
        result[:, 8:] = (0.5 + 0.2 * number) * z - number
        return result

    monkeypatch.setattr(Model, "maps", maps)
    plan = survey.make_plan(load(path), image.shape, 16, "8", 4.0)
    plan = survey.Plan(plan_blended(image.shape, 16, 8), (16, 16, 16), False)
    assert len(plan.tiles) > 3
    monkeypatch.setattr(survey, "make_plan", lambda *_: plan)
    infer(infer_config(tmp_path / "in.npy", path, tmp_path / "o", monotone_rgt=False), QUICK)
    assert f"{len(plan.tiles)} tiles differ from the whole volume" in capfd.readouterr().err
    rgt = outputs(tmp_path / "o", ("rgt",))["rgt"]
    np.testing.assert_allclose(rgt, rgt[:, :1, :1].repeat(16, 1).repeat(48, 2), atol=0.02)


def test_a_folder_is_every_volume_in_it(tmp_path: Path, model_path: Path):
    """--input FOLDER infers each volume of the folder under its own name; an empty folder is an error."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / f"in/{name}.npy", noisy_layers((16, 16, 16)))
    (tmp_path / "in/notes.txt").write_text("nothing")
    config = infer_config(tmp_path / "in", model_path, tmp_path / "out", rgt=False, dhr=False)
    assert len(infer(config, QUICK)["surveys"]) == 2
    assert {p.name for p in (tmp_path / "out").glob("*.fsem.npy")} == {"a.fsem.npy", "b.fsem.npy"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folder without volumes"):
        infer(replace(config, input=str(tmp_path / "empty")), QUICK)


def test_model_says_threshold_temperature_and_residual(tmp_path: Path, model_path: Path):
    """What was fitted on validation cubes is used by inference unless a flag says otherwise."""
    from fault_seg.calibration import store

    calibrated = tmp_path / "c.ckpt"
    calibrated.write_bytes(model_path.read_bytes())
    store(calibrated, {"temperature": 2.0, "threshold": 0.3, "rgt_residual": False})
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 16)))
    plain = infer_config(tmp_path / "in.npy", model_path, tmp_path / "a")
    assert infer(plain, QUICK)["threshold"] == 0.5
    fitted = replace(plain, model=str(calibrated), output=str(tmp_path / "b"))
    assert infer(fitted, QUICK)["threshold"] == 0.3
    assert infer(replace(fitted, output=str(tmp_path / "c"), threshold=0.7), QUICK)["threshold"] == 0.7
    for prefix, threshold in (("a", 0.5), ("b", 0.3), ("c", 0.7)):  # objects.py takes what inference used
        assert chosen_threshold(ObjectsConfig(input=str(tmp_path / prefix))) == threshold
    infer(replace(fitted, output=str(tmp_path / "d"), rgt_residual="on"), QUICK)
    p, q = (outputs(tmp_path / n, ("fsem",))["fsem"].astype(np.float64) for n in "ab")
    np.testing.assert_allclose(np.log(q / (1 - q)), np.log(p / (1 - p)) / 2, atol=1e-3)
    fdip = outputs(tmp_path / "b", ("fdip",))["fdip"]
    assert (np.isfinite(fdip) == (q >= 0.3)).all()
    assert not np.array_equal(*(outputs(tmp_path / n, ("rgt",))["rgt"] for n in "bd"))


def test_a_stopped_inference_goes_on(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted at a tile and continued with --resume auto, the files are those of an undisturbed run."""
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 96)))
    config = infer_config(
        tmp_path / "in.npy", model_path, tmp_path / "a", block=16, overlap="4", format=("raw",)
    )
    infer(config, QUICK)
    config = replace(config, output=str(tmp_path / "b"))
    maps, calls = Model.maps, []

    def interrupted(model: Model, image: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return maps(model, image)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer(config, QUICK)
    assert (tmp_path / "b.scratch/progress.0").is_file()
    again: list[int] = []
    monkeypatch.setattr(Model, "maps", lambda m, i: (again.append(1), maps(m, i))[1])
    infer(replace(config, resume="auto"), QUICK)
    assert 0 < len(again) < 8
    for name in ATTRIBUTES:
        assert (tmp_path / f"b.{name}").read_bytes() == (tmp_path / f"a.{name}").read_bytes()
    assert not (tmp_path / "b.scratch").exists()


def test_a_killed_inference_goes_on(tmp_path: Path, model_path: Path):
    """Killed without warning and continued, a run ends with the bytes of an undisturbed one."""
    np.save(tmp_path / "in.npy", noisy_layers((32, 32, 136)))
    base = [sys.executable, str(ROOT / "scripts/fault_seg/infer.py"), "--input", "in.npy", "--block", "32"]
    base += ["--model", str(model_path), "--overlap", "4", "--no_figures", "--no_rgt", "--threads", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*base, "--output", "b"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    progress = tmp_path / "b.scratch/progress.0"
    for _ in range(600):
        if progress.is_file() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert progress.is_file() and not list(tmp_path.glob("b.fsem*"))
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "b", block=32, overlap="4", rgt=False)
    infer(replace(config, resume="auto", angle_fill="zero"), QUICK)
    infer(replace(config, output=str(tmp_path / "a"), angle_fill="zero"), QUICK)
    for name in ("fsem", "fdip", "dhr"):
        assert (tmp_path / f"b.{name}.npy").read_bytes() == (tmp_path / f"a.{name}.npy").read_bytes()


def test_another_run_is_not_continued(tmp_path: Path, model_path: Path):
    """--resume auto after the input or a flag has changed starts anew."""
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 32)))
    scratch = tmp_path / "o.scratch"
    scratch.mkdir()
    for name in ("fsem", "fdip", "fstrike", "dhr", "time"):
        np.full(16 * 16 * 32, 7, "<f4").tofile(scratch / name)
    (scratch / "state.json").write_text(json.dumps({"key": "of another run"}))
    (scratch / "progress.0").write_text("32")
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "o", resume="auto", overlap="8")
    infer(config, QUICK)
    infer(replace(config, output=str(tmp_path / "p"), resume=""), QUICK)
    for name, values in outputs(tmp_path / "p").items():
        np.testing.assert_array_equal(outputs(tmp_path / "o")[name], values)
