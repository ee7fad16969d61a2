"""Inference: what it computes does not depend on how it is cut, and its files are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _fault_seg_survey
from benchmarks._child import ask
from common.errors import DataError
from fault_seg import survey
from fault_seg.angles import fold_dip
from fault_seg.config_infer import InferConfig
from fault_seg.dataset import normalise_image
from fault_seg.infer import infer, load, predict
from fault_seg.maps import Model
from fault_seg.segy import open_segy
from fault_seg.volumes import open_volume, output_path, read_sidecar, read_volume
from tests.fault_seg.cases import QUICK, infer_config, noisy_layers, save_model
from tests.fault_seg.volume_files import make_segy
from tests.launch import ROOT, torchrun

ATTRIBUTES = ("fsem", "fdip", "fstrike", "rgt", "dhr")
OVERWRITE = replace(QUICK, overwrite=True)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a random network with all heads."""
    return save_model(tmp_path_factory.mktemp("model") / "model.ckpt")


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    """Return that network."""
    return load(model_path, "cpu", precision="fp32")


def outputs(prefix: Path, kind: str = "npy", names: tuple[str, ...] = ATTRIBUTES) -> dict[str, np.ndarray]:
    """Read what an inference wrote."""
    return {name: read_volume(output_path(prefix, name, kind), dataset=name) for name in names}


def run(
    image: np.ndarray, model_path: Path, folder: Path, names: tuple[str, ...] = ATTRIBUTES, **changes: Any
) -> dict[str, np.ndarray]:
    """Infer an array through npy files and read the volumes."""
    np.save(folder / "in.npy", image)
    settings = {"angle_units": "degrees", "angle_fill": "zero", **changes}
    infer(infer_config(folder / "in.npy", model_path, folder / "out", **settings), OVERWRITE)
    return outputs(folder / "out", names=names)


@pytest.mark.parametrize(
    ("shape", "block"),
    [((21, 17, 130), 32), ((5, 33, 18), 16), ((21, 1, 40), 16), ((23, 18, 75), 512), ((1, 1, 3), 16)],
)
def test_exact_tiles_equal_the_whole(
    tmp_path: Path, model: Model, model_path: Path, shape: tuple[int, int, int], block: int
):
    """--overlap exact gives the whole volume's fsem, dhr and normals to 1e-5, thin and odd sizes too."""
    image = 100 + 30 * noisy_layers(shape)
    whole = predict(model, image)
    plan = survey.make_plan(model, shape, block, "exact", 4.0)
    assert plan.exact and (len(plan.tiles) > 1) == (block < max(shape))
    tiled = run(image, model_path, tmp_path, block=block, overlap="exact")
    np.testing.assert_allclose(tiled["fsem"], whole["fsem"], rtol=0, atol=1e-5)
    rule = survey.survey_rule(open_volume(tmp_path / "in.npy"))
    dhr = whole["dhr"] * rule.std + rule.mean
    np.testing.assert_allclose(tiled["dhr"], dhr, rtol=0, atol=1e-5 * rule.std)
    fault = whole["fsem"] >= 0.501
    dip = fold_dip(torch.from_numpy(whole["fdip"] * 180)).numpy()
    for name, expected in (("fdip", dip), ("fstrike", whole["fstrike"] * 180)):
        off = np.abs(tiled[name] - expected)[fault]
        assert off.size == 0 or np.minimum(off, 180 - off).max() < 0.1, name


def test_exact_normals(tmp_path: Path, model: Model, model_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before any angle is made, the six components of n n^T of exact tiles agree with the whole's as well."""
    image = noisy_layers((24, 20, 60))
    whole = model.maps(torch.from_numpy(normalise_image(image))[None, None])[0].numpy()
    parts: list[np.ndarray] = []
    angles = survey.fault_angles
    monkeypatch.setattr(survey, "fault_angles", lambda n, p: (parts.append(n.copy()), angles(n, p))[1])
    run(image, model_path, tmp_path, block=16, overlap="exact", rgt=False, names=ATTRIBUTES[:3])
    assert len(parts) > 2
    tiled = np.concatenate(parts, axis=3)
    np.testing.assert_allclose(tiled, whole[1:7], rtol=0, atol=1e-5)
    assert np.abs(whole[1:7]).std() > 1e-3


def test_exact_does_not_depend_on_memory(tmp_path: Path, model_path: Path):
    """Another --max_memory cuts other tiles and gives the same fsem and dhr to 1e-5."""
    image = noisy_layers((16, 13, 150))
    plans = [survey.make_plan(load(model_path), image.shape, 128, "exact", gib).block for gib in (4, 0.0118)]
    assert plans[0] != plans[1]
    large = run(image, model_path, tmp_path, overlap="exact")
    small = run(image, model_path, tmp_path, overlap="exact", max_memory=0.0118)
    for name in ("fsem", "dhr"):
        np.testing.assert_allclose(small[name], large[name], rtol=0, atol=1e-5)


def test_gain_and_offset_do_not_count(tmp_path: Path, model_path: Path):
    """Amplitudes times 7 plus 100 leave fsem unchanged to 1e-4, and dhr comes back in input units."""
    image = noisy_layers((24, 20, 40))
    plain = run(image, model_path, tmp_path, block=32, overlap="8")
    louder = run(7 * image + 100, model_path, tmp_path, block=32, overlap="8")
    np.testing.assert_allclose(louder["fsem"], plain["fsem"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(louder["dhr"], 7 * plain["dhr"] + 100, rtol=0, atol=1e-2)


def test_polarity(tmp_path: Path, model_path: Path):
    """--polarity -1 on a negated survey gives the same faults, and dhr in the survey's own sign."""
    image = noisy_layers((16, 16, 20))
    plain = run(image, model_path, tmp_path)
    turned = run(-image, model_path, tmp_path, polarity=-1)
    np.testing.assert_allclose(turned["fsem"], plain["fsem"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(turned["dhr"], -plain["dhr"], rtol=0, atol=1e-4)


def test_every_format_says_the_same(tmp_path: Path, model_path: Path):
    """raw, npy, h5, mhd and vti hold the same volumes; raw angles are gated over 180, others degrees."""
    np.save(tmp_path / "in.npy", noisy_layers((19, 14, 12)))
    kinds = ("raw", "npy", "h5", "mhd", "vti")
    prefix = tmp_path / "new folder" / "ü"
    config = infer_config(tmp_path / "in.npy", model_path, prefix, format=kinds)
    summary = infer(config, QUICK)
    found = {kind: outputs(prefix, kind) for kind in kinds}
    for kind in kinds[1:]:
        for name in ("fsem", "rgt", "dhr"):
            np.testing.assert_array_equal(found[kind][name], found["raw"][name])
    fsem = found["raw"]["fsem"]
    fault = fsem >= 0.5
    assert 0.02 < fault.mean() < 0.98 and summary["fault_fraction"] == pytest.approx(fault.mean())
    for name in ("fdip", "fstrike"):
        for kind in ("npy", "h5"):
            assert (np.isnan(found[kind][name]) == ~fault).all()
        for kind in ("mhd", "vti"):
            np.testing.assert_array_equal(found[kind][name], np.nan_to_num(found["npy"][name]))
        degrees, gated = found["npy"][name][fault], found["raw"][name][fault] / fsem[fault] * 180
        expected = np.minimum(gated, 180 - gated) if name == "fdip" else gated
        np.testing.assert_allclose(degrees, expected, atol=1e-3)
        assert degrees.min() >= 0 and degrees.max() <= (90 if name == "fdip" else 180)
    side = read_sidecar(output_path(prefix, "fsem", "raw"))
    assert side is not None and [side[n] for n in ("n1", "n2", "n3")] == [19, 14, 12]
    assert side["model_sha256"] == load(model_path).sha256 and side["normalisation"] and side["block"]
    assert side["threshold"] == 0.5 and side["receptive_radius"] == 53 and list(side["units"]) == list(kinds)
    assert side["units"]["raw"]["fdip"] == "degrees/180, times probability"
    assert side["units"]["vti"] == side["units"]["npy"] and side["units"]["npy"]["fstrike"] == "degrees"
    assert side["units"]["raw"]["fsem"] == "probability" and set(side["units"]["raw"]) == set(ATTRIBUTES)
    assert not [p for p in prefix.parent.iterdir() if p.is_dir()]
    assert not list(prefix.parent.rglob(".*"))


def test_geological_time(tmp_path: Path, model_path: Path):
    """Time spans 0..1 and increases down every trace wherever no fault cuts it."""
    found = run(noisy_layers((40, 12, 12)), model_path, tmp_path)
    rgt, fault = found["rgt"], found["fsem"] >= 0.5
    assert rgt.min() >= 0 and rgt.max() <= 1 and rgt.max() - rgt.min() > 0.8
    free = ~(fault[1:] | fault[:-1])
    assert free.any() and (np.diff(rgt, axis=0)[free] >= 0).all()
    assert rgt[-1].mean() > 0.8 and rgt[0].mean() < 0.2


def test_slopes_do_not_depend_on_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The geological time of a survey is the same when its slopes are measured in small tiles."""
    image = noisy_layers((30, 26, 40))
    times = []
    for block in ((32, 32, 48), (8, 16, 8)):
        monkeypatch.setattr(survey.blocks, "choose_block", lambda *_, b=block, **__: b)
        scratch = survey.Scratch(tmp_path / "scratch", image.shape, [])
        times.append(survey.solve_survey_time(scratch, lambda a, b: image[:, :, a:b], 4.0)(0, 40))
        scratch.remove()
    np.testing.assert_allclose(times[1], times[0], rtol=0, atol=2e-3)
    coarse = survey.solve_survey_time(scratch, lambda a, b: image[:, :, a:b], 0.002)(0, 40)  # 4^3 blocks
    z = np.arange(30)[:, None, None]
    assert np.corrcoef((coarse - z).ravel(), (times[0] - z).ravel())[0, 1] > 0.7


def segy_input(path: Path) -> np.ndarray:
    """Write a survey with steps, a missing and a dead trace; return its samples [n1, n2, n3]."""
    cube = 1000 * noisy_layers((21, 6, 9))
    cube[:, 2, 4] = 0
    ilines, xlines = list(range(100, 118, 2)), list(range(7, 13))
    make_segy(path, cube.round(), code=3, ilines=ilines, xlines=xlines, skip={(104, 9)})
    return cube


def assert_geometry_kept(before: Path, prefix: Path, null: int) -> None:
    """Assert that five SEG-Y files have the headers of `before`, IEEE samples and its null traces."""
    for name in ATTRIBUTES:
        with open_segy(before) as old, open_segy(output_path(prefix, name, "segy")) as new:
            assert new.layout.code == 5 and new.num_traces == old.num_traces and new.shape == old.shape
            assert (new.ilines == old.ilines).all() and (new.xlines == old.xlines).all()
            assert new.dt_ms == old.dt_ms
            last = old.num_traces - 1
            differ = np.flatnonzero((old.headers(0, last) != new.headers(0, last)).any(axis=0)) + 1
            assert set(differ) <= {115, 116, 117, 118}
            values = new.read(0, new.shape[2])
            old.scan()
            assert np.isfinite(values).all() and (values[:, old.null] == 0).all() and old.null.sum() == null
            if name in ("fsem", "dhr"):
                assert (values[:, ~old.null] != 0).any(axis=0).all()


def test_segy_in_and_out(tmp_path: Path, model_path: Path):
    """SEG-Y in gives five SEG-Y files: headers, trace order, missing and null traces as they were."""
    segy_input(tmp_path / "in.sgy")
    config = infer_config(tmp_path / "in.sgy", model_path, tmp_path / "out/s", figures=True)
    infer(config, QUICK)
    assert_geometry_kept(tmp_path / "in.sgy", tmp_path / "out/s", null=2)
    names = {p.name for p in (tmp_path / "out/figures").iterdir()}
    assert names == {
        "inline_108.png",
        "crossline_10.png",
        "timeslice_20.png",
        "strike_rose.png",
        "summary.png",
    }


def test_field_survey(real_data: Path, tmp_path: Path, model_path: Path):
    """The F3 crop gives five SEG-Y files with its geometry, tiled as whole."""
    path = real_data / "fault" / "f3.sgy"
    infer(infer_config(path, model_path, tmp_path / "f3"), QUICK)
    assert_geometry_kept(path, tmp_path / "f3", null=0)
    with open_segy(output_path(tmp_path / "f3", "fsem", "segy")) as survey_out:
        assert survey_out.shape == (75, 18, 23) and survey_out.dt_ms == 4
        assert (survey_out.ilines[0], survey_out.xlines[0]) == (111, 875)
    whole = predict(load(model_path), read_volume(path))["fsem"]
    config = infer_config(
        path, model_path, tmp_path / "e", block=32, overlap="exact", format=("npy",), rgt=False
    )
    infer(config, QUICK)
    np.testing.assert_allclose(outputs(tmp_path / "e", names=("fsem",))["fsem"], whole, rtol=0, atol=1e-5)


def test_nan_samples_are_missing(tmp_path: Path, model_path: Path):
    """With --allow_nan a NaN sample and a trace of NaN come out as zero, all else finite and untouched."""
    image = noisy_layers((16, 12, 70))
    clean = run(image, model_path, tmp_path, overlap="exact")
    image[4, 5, 6], image[:, 3, 3] = np.nan, np.nan
    found = run(image, model_path, tmp_path, overlap="exact", allow_nan=True, figures=True)
    for name in ATTRIBUTES:
        assert np.isfinite(found[name]).all() and (found[name][:, 3, 3] == 0).all(), name
        assert found[name][4, 5, 6] == 0
    radius = load(model_path).radius or 0
    far = slice(6 + radius + 1, None)
    np.testing.assert_allclose(found["fsem"][:, :, far], clean["fsem"][:, :, far], rtol=0, atol=1e-3)


def test_constant_traces_are_no_data(tmp_path: Path, model_path: Path, capfd: pytest.CaptureFixture[str]):
    """Traces of one value are taken as zeros, in the normalisation too, come out as zeros, and are told."""
    image = noisy_layers((16, 12, 30))
    image[:, 3, 3] = image[:, 4:6, 20] = 0
    expected = run(image, model_path, tmp_path)
    image[:, 3, 3], image[:, 4:6, 20] = 1e4, -7
    found = run(image, model_path, tmp_path)
    for name in ATTRIBUTES:
        np.testing.assert_array_equal(found[name], expected[name])
        assert (found[name][:, 3, 3] == 0).all() and (found[name][:, 4:6, 20] == 0).all()
    assert "in.npy: 3 of 360 traces missing, zero or constant" in capfd.readouterr().err


@pytest.mark.parametrize("heads", [("fault",), ("dhr",), ("rgt",), ("dhr", "rgt")])
@pytest.mark.parametrize("overlap", ["exact", "8"])
def test_partial_models(tmp_path: Path, heads: tuple[str, ...], overlap: str):
    """A model with some heads writes their volumes and no other."""
    path = save_model(tmp_path / "model.ckpt", heads)
    np.save(tmp_path / "in.npy", noisy_layers((9, 8, 20)))
    summary = infer(infer_config(tmp_path / "in.npy", path, tmp_path / "o", overlap=overlap, block=16), QUICK)
    names = [
        n
        for h, group in (("fault", ATTRIBUTES[:3]), ("rgt", ("rgt",)), ("dhr", ("dhr",)))
        if h in heads
        for n in group
    ]
    assert summary["attributes"] == names
    assert {p.name for p in tmp_path.glob("o.*")} == {"o.json", *(f"o.{n}.npy" for n in names)}


@pytest.mark.parametrize("layout", ["unet", "mtl"])
def test_other_layouts(tmp_path: Path, layout: str):
    """The baseline and the published layout write their volumes through the same door."""
    heads = ("fault",) if layout == "unet" else ("fault", "dhr", "rgt")
    path = save_model(tmp_path / "model.ckpt", heads, layout)
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 20)))
    summary = infer(infer_config(tmp_path / "in.npy", path, tmp_path / "o"), QUICK)
    assert summary["attributes"] == (["fsem"] if layout == "unet" else list(ATTRIBUTES))
    assert all(np.isfinite(np.load(tmp_path / f"o.{n}.npy")).any() for n in summary["attributes"])


def test_without_an_attribute(tmp_path: Path, model_path: Path):
    """An attribute that is off is not written, whatever the model can do."""
    np.save(tmp_path / "in.npy", noisy_layers((9, 8, 20)))
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "o", rgt=False, dhr=False)
    assert infer(config, QUICK)["attributes"] == ["fsem", "fdip", "fstrike"]
    assert not (tmp_path / "o.rgt.npy").exists()


def test_out_of_memory(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When memory runs out tiles are halved, at most three times, and nothing is left after a failure."""
    np.save(tmp_path / "in.npy", noisy_layers((32, 32, 64)))
    config = infer_config(tmp_path / "in.npy", model_path, tmp_path / "o", rgt=False)
    maps, limit = Model.maps, [32**3]

    def scarce(model: Model, image: torch.Tensor) -> torch.Tensor:
        if image.numel() > limit[0]:
            raise MemoryError
        return maps(model, image)

    monkeypatch.setattr(Model, "maps", scarce)
    assert infer(config, QUICK)["block"] == [32, 32, 32]
    limit[0] = 0
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match="out of memory with blocks of"):
        infer(config, OVERWRITE)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_two_ranks_equal_one(tmp_path: Path, model_path: Path):
    """Two ranks share the inlines and write what one process writes, to 1e-6."""
    np.save(tmp_path / "in.npy", noisy_layers((20, 17, 75)))
    flags = [
        "--input",
        tmp_path / "in.npy",
        "--model",
        model_path,
        "--output",
        tmp_path / "two",
        "--block",
        32,
    ]
    flags += [
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--threads",
        1,
        "--angle_fill",
        "zero",
        "--overlap",
        "8",
    ]
    ended = torchrun(ROOT / "scripts/fault_seg/infer.py", flags, tmp_path / "said.txt")
    assert ended.returncode == 0, ended.output
    assert ended.output.count("wrote fsem") == 1 and not (tmp_path / "two.scratch").exists()
    config = InferConfig(
        str(tmp_path / "in.npy"), str(model_path), str(tmp_path / "one"), block=32, overlap="8"
    )
    infer(replace(config, angle_fill="zero"), QUICK)
    two, one = outputs(tmp_path / "two"), outputs(tmp_path / "one")
    for name in ATTRIBUTES:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-6 if name == "fsem" else 1e-4)


@pytest.mark.parametrize(("n3", "budget"), [(320, 0.08), pytest.param(4096, 0.16, marks=pytest.mark.slow)])
def test_memory_is_bounded(tmp_path: Path, n3: int, budget: float):
    """A survey of many inlines is streamed: no more than 1.5 budgets are added to what a small one took."""
    n1, n2 = 64, 64
    piece = noisy_layers((n1, n2, 64)).transpose(2, 1, 0).tobytes()
    with open(tmp_path / "big.bin", "wb") as file:
        for _ in range(n3 // 64):
            file.write(piece)
    seen = ask(_fault_seg_survey.__file__, tmp_path, n1, n2, n3, budget)
    assert seen["peak"] - seen["base"] <= 1.5 * budget * 2**30, seen
