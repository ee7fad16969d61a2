"""Exports: the same fields as the model from any file, meshes that parse back to the same numbers."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.run import MachineOptions
from simulgen_vae import export as export_module
from simulgen_vae.config_infer import ExportConfig
from simulgen_vae.export import ParityError, export, exported_program, held_out, relative_difference
from simulgen_vae.graph import load
from simulgen_vae.infer import predict
from simulgen_vae.mesh_files import CELL_TYPES, Mesh, grid_spacing, write_series, write_vtu
from tests.simulgen_vae.cases_infer import KINDS, QUICK, make_model, write_table
from tests.simulgen_vae.cases_predictors import FRAMES, NX, NY, bumps
from tests.vtk_files import read_vti, read_vtu

NODES = NX * NY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a calibrated deliverable."""
    return make_model(tmp_path_factory.mktemp("model"), bounds="0,0.6:hard")


def run(
    model: Path, out: Path, *formats: str, options: MachineOptions = QUICK, **flags: Any
) -> dict[str, Any]:
    """Export with few repeats."""
    return export(ExportConfig(model=str(model), to=formats, out=str(out), repeats=2, **flags), options)


def inputs_of(model: Path, count: int, seed: int = 7) -> torch.Tensor:
    """Return new parameters."""
    return torch.from_numpy(bumps(count, seed)[1]).float()


def test_exported_graph(model: Path, tmp_path: Path):
    """The .pt2 file alone gives the model's fields for batches of 1 and 5, its bounds kept exactly."""
    card = run(model, tmp_path, "torch_export")
    assert card["files"]["torch_export"]["difference"] <= 1e-4
    module = torch.export.load(tmp_path / "predictor.pt2").module()
    for count in (1, 5):
        params = inputs_of(model, count)
        expected = predict(load(model), params).fields
        with torch.no_grad():
            found = module(params)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.max() == np.float32(0.6) and found.min() >= 0
    stored = json.loads((tmp_path / "card.json").read_text())
    assert stored["inputs"]["params"]["names"] == ["x", "y", "rate"]
    assert stored["output"]["shape"] == ["batch", FRAMES, NODES, 1] and stored["output"]["units"] == ["K"]
    assert stored["constraints"] == {"low": [0.0], "high": [pytest.approx(0.6)]}
    latency = stored["files"]["torch_export"]
    assert 0 < latency["exported"]["median_ms"] <= latency["exported"]["p95_ms"] and latency["eager"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "vae_net"])
def test_every_predictor_exports(kind: str, tmp_path: Path):
    """Networks, processes, grids and mixes of them are captured; the batch size stays free."""
    folder = make_model(tmp_path / kind, kind)
    graph = load(folder).require_graph()
    program, is_free = exported_program(graph, (inputs_of(folder, 3),))
    assert is_free
    with torch.no_grad():
        for count in (1, 4):
            params = inputs_of(folder, count)
            assert relative_difference(program.module()(params).numpy(), graph(params).numpy()) <= 1e-5


def test_pictures_export(tmp_path: Path):
    """A model of numbers and pictures exports with both inputs."""
    folder = make_model(tmp_path / "m", pictures=True, fusion_encoder="vit")
    graph = load(folder).require_graph()
    assert graph.input_names == ("params", "image")
    image = torch.rand(3, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    params = inputs_of(folder, 3)
    program, is_free = exported_program(graph, (params, image))
    with torch.no_grad():
        expected = graph(params[:1], image[:1])
        torch.testing.assert_close(program.module()(params[:1], image[:1]), expected, rtol=1e-4, atol=1e-5)
    assert is_free


def test_safetensors(model: Path, tmp_path: Path):
    """The safetensors file holds all weights under plain names; the same model predicts from them."""
    from safetensors import safe_open

    card = run(model, tmp_path, "safetensors")
    assert card["files"]["safetensors"]["difference"] == 0.0
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"basis.modes", "arrays.time"} <= names and any(n.startswith("vae.decoder.") for n in names)


def test_a_wrong_export_is_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that computes something else ends in exit code 1 with the difference, and is not there."""
    real = export_module._WRITERS["safetensors"]

    def spoiled(*arguments: Any) -> Any:
        run_file = real(*arguments)
        return lambda inputs: run_file(inputs) + 0.01

    monkeypatch.setitem(export_module._WRITERS, "safetensors", spoiled)
    with pytest.raises(ParityError, match=r"weights\.safetensors: differs from the model by 0\.01") as caught:
        run(model, tmp_path, "safetensors")
    assert caught.value.exit_code == 1 and not list(tmp_path.iterdir())


def test_onnx_without_its_library(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the optional libraries ONNX is a usage error with the pip line, before any work."""
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="--to onnx needs onnx.* pip install onnx onnxscript onnxruntime"):
        run(model, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())


def test_onnx(model: Path, tmp_path: Path):
    """Where the libraries are there, the ONNX file agrees with the model."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    assert run(model, tmp_path, "onnx")["files"]["onnx"]["difference"] <= 1e-4


def test_vtk_of_held_out_samples(model: Path, tmp_path: Path):
    """.vtu and .vti frames hold truth, prediction, error and bars; the .pvd names every frame at its time."""
    run(model, tmp_path, "vtk")
    loaded = load(model)
    row = int(loaded.surrogate.split.test[0])
    series = ElementTree.parse(tmp_path / f"sample_{row}.pvd").getroot().findall("Collection/DataSet")
    times = [float(entry.get("timestep", "")) for entry in series]
    np.testing.assert_allclose(times, np.linspace(0, 1, FRAMES), atol=1e-8)
    values, mesh = read_vtu(tmp_path / series[2].get("file", ""))
    assert set(values) == {"field", "prediction", "error", "std", "lower", "upper"}
    truth, params = bumps(32)
    np.testing.assert_array_equal(values["field"], truth[row, 2, :, 0])
    expected = predict(loaded, torch.from_numpy(params[row : row + 1]).float()).fields[0, 2, :, 0].numpy()
    np.testing.assert_allclose(values["prediction"], expected, atol=1e-5)
    np.testing.assert_allclose(values["error"], values["prediction"] - values["field"], atol=1e-6)
    assert mesh["Points"].shape == (NODES, 3) and len(mesh["offsets"]) == (NY - 1) * (NX - 1)
    assert set(mesh["types"].tolist()) == {CELL_TYPES["quad"]}
    arrays, spacing, origin = read_vti(tmp_path / f"sample_{row}/frame0002.vti")
    np.testing.assert_array_equal(arrays["prediction"].reshape(-1), values["prediction"])
    assert spacing[1:] == pytest.approx((1 / NY, 2 / NX)) and origin[1:] == pytest.approx((0.5 / NY, 1 / NX))


def test_new_inputs_as_vtk_and_npy(model: Path, tmp_path: Path):
    """New parameters have no truth to write; npy files hold the same numbers as memory."""
    params = bumps(2, 9)[1]
    table = write_table(tmp_path / "new.csv", params)
    run(model, tmp_path / "out", "vtk", "npy", params=str(table), num=2)
    assert (tmp_path / "out/sample_1_grid.pvd").is_file()
    assert set(read_vtu(tmp_path / "out/sample_1/frame0000.vtu")[0]) == {
        "prediction",
        "std",
        "lower",
        "upper",
    }
    found = np.load(tmp_path / "out/sample_1_prediction.npy", allow_pickle=False)
    expected = predict(load(model), torch.from_numpy(params[1:]).float()).fields[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match=r"sample_0\.pvd: exists already"):
        run(model, tmp_path / "out", "vtk", params=str(table), options=QUICK)


def test_meshes_of_any_cells(tmp_path: Path):
    """Points, mixed cells and doubles parse back bit for bit; an unknown cell type is named."""
    points = np.random.default_rng(0).standard_normal((5, 3))
    cells = {"triangle": np.array([[0, 1, 2]]), "tetra": np.array([[1, 2, 3, 4]])}
    value = np.arange(5, dtype=np.float64)
    write_vtu(tmp_path / "m.vtu", Mesh(points, cells), {"a <&> b": value})
    values, mesh = read_vtu(tmp_path / "m.vtu")
    assert np.array_equal(mesh["Points"], points) and np.array_equal(values["a <&> b"], value)
    assert mesh["connectivity"].tolist() == [0, 1, 2, 1, 2, 3, 4] and mesh["offsets"].tolist() == [3, 7]
    assert mesh["types"].tolist() == [5, 10]
    write_vtu(tmp_path / "bare.vtu", Mesh(points), {"a": value})
    assert read_vtu(tmp_path / "bare.vtu")[1]["types"].tolist() == [1] * 5
    with pytest.raises(Exception, match="cells polygon, expected vertex, line"):
        write_vtu(tmp_path / "x.vtu", Mesh(points, {"polygon": cells["triangle"]}), {"a": value})


def test_uneven_grids_have_no_image(tmp_path: Path):
    """Only evenly spaced nodes become .vti; others keep their .vtu."""
    y, x = np.meshgrid(np.arange(3.0), np.arange(4.0) * 0.5, indexing="ij")
    points = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3)
    even = Mesh(points, grid_shape=(3, 4))
    bent = Mesh(points * [[1.0, 1.0, 1.0]] + 0.1 * np.sin(points), grid_shape=(3, 4))
    assert grid_spacing(even) == (1.0, 0.5) and grid_spacing(bent) is None
    made = write_series(tmp_path, "s", bent, [0.0, 1.0], {"a": np.zeros((2, 12))})
    assert [p.name for p in made] == ["s.pvd"] and not list(tmp_path.rglob("*.vti"))


def test_without_the_data_set(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """When the data has gone, the check uses seeded inputs of the training range, and says so."""
    import shutil

    folder = Path(shutil.copytree(model, tmp_path / "moved"))
    data = model / "bumps.h5"
    data.rename(tmp_path / "hidden.h5")
    try:
        run(folder, tmp_path / "out", "safetensors")
    finally:
        (tmp_path / "hidden.h5").rename(data)
    assert "checked on inputs drawn from the training range instead" in caplog.text
    loaded = load(folder)
    drawn, trained = held_out(loaded, None, 8).params, loaded.surrogate.arrays["train_params"].numpy()
    assert (drawn >= trained.min(0)).all() and (drawn <= trained.max(0)).all()
