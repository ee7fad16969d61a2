"""What a user names as model, output, data and wavelet: runs as models, other flags, what is refused."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import checkpoint as checkpoints
from common.cli import parse
from common.errors import DataError, UserError
from common.run import BasicOptions, MachineOptions
from tests.velocity_inversion.cases import CPU
from velocity_inversion.config import TrainConfig
from velocity_inversion.config_data import DataConfig
from velocity_inversion.config_tools import EvaluateConfig, ExportConfig, InferConfig, RefineConfig
from velocity_inversion.ensemble import MODEL_FILE, load_ensemble, save_ensemble
from velocity_inversion.evaluate import command_of
from velocity_inversion.export import export
from velocity_inversion.geometry import openfwi_survey, with_peak
from velocity_inversion.make_data import make_data
from velocity_inversion.quick import untrained
from velocity_inversion.simulate import Simulation, default_simulation, simulate
from velocity_inversion.sources import open_source

SMALL = TrainConfig(num_models=1, embed_dim=16, num_heads=2, num_layers=1, stem=8)


@pytest.mark.parametrize("kind", [InferConfig, EvaluateConfig, RefineConfig, ExportConfig])
def test_model_is_also_model_path(kind: type[Any]):
    """`--model` is `--model_path`, and export's `--out` its `--output`."""
    known = kind.__dataclass_fields__
    needed = [w for f in ("prediction_path", "test_data_path") if f in known for w in (f"--{f}", "p")]
    outputs = ["--out", "x.onnx"] if "output" in known else []
    config = parse(["--model", "run", *needed, *outputs], kind, MachineOptions).config
    assert config.model_path == "run" and getattr(config, "output", "x.onnx") == "x.onnx"


def test_a_training_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The folder of a training, or its folder models, means the ensemble in it, which is said."""
    with pytest.raises(DataError, match=r"expected in it models/best_ensemble_model\.pth or best.*; name"):
        load_ensemble(tmp_path)
    (tmp_path / "member_00").mkdir()
    with pytest.raises(DataError, match="not put together yet; run train.py with --assemble"):
        load_ensemble(tmp_path)
    (tmp_path / "models").mkdir()
    save_ensemble(tmp_path / MODEL_FILE, untrained(openfwi_survey(1, 4), SMALL))
    for folder in (tmp_path, tmp_path / "models"):
        assert load_ensemble(folder).path == tmp_path / MODEL_FILE
    assert f"is a folder, taking {MODEL_FILE}" in capsys.readouterr().err
    made = export(ExportConfig(model_path=str(tmp_path)), CPU)
    assert made["file"] == str((tmp_path / MODEL_FILE).with_suffix(".safetensors"))
    again = load_ensemble(made["file"])
    assert again.sha256 == load_ensemble(tmp_path).sha256 and again.configs == load_ensemble(tmp_path).configs


def test_weights_of_another_package_are_named(tmp_path: Path):
    """Exported weights of another package are refused with both names."""
    other = checkpoints.Checkpoint("fault_seg", "infer", {}, {}, {"w": torch.zeros(2)})
    checkpoints.export_safetensors(tmp_path / "f.safetensors", other)
    with pytest.raises(DataError, match="package 'fault_seg', expected 'velocity_inversion'"):
        load_ensemble(tmp_path / "f.safetensors")


def test_waves_without_cells_are_refused(tmp_path: Path):
    """Less than a cell in the shortest wavelength is no simulation; nothing is written, dry run or not."""
    config = DataConfig(num_train=1, num_val=0, num_test=0, peak_hz=400.0)
    for options in (BasicOptions(dry_run=True), BasicOptions()):
        with pytest.raises(UserError, match=r"400 Hz on cells of 10 m: 0\.15 cells .* at most 20 Hz"):
            make_data(config, options, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    vp = torch.full((1, 70, 70), 2.0)
    with pytest.raises(UserError, match="lower --grid_m, or use a wavelet of at most"):
        simulate(vp, Simulation(openfwi_survey(1, 4), 70.0))
    assert default_simulation(with_peak(openfwi_survey(), 50.0, 1.0)).cells_in_wavelength == pytest.approx(
        1.2
    )


def test_cells_of_simulations_are_whole_cells_of_the_section():
    """A grid between the section's cells would stretch it, and is refused; the default one never is."""
    survey = openfwi_survey()
    for grid_m in (5.0, 15.0):
        with pytest.raises(UserError, match="expected a whole multiple of the 10 m cells"):
            default_simulation(survey, grid_m)
    assert default_simulation(survey, 20.0).factor == 2
    for cell_m, grid_m in ((2.0, 4.0), (1.0, 5.0)):
        count = round(700 / cell_m)
        finer = replace(survey, dx_m=cell_m, dz_m=cell_m, model_shape_zx=(count, count))
        assert default_simulation(finer).grid_m == grid_m


def test_one_array_is_no_data_set(tmp_path: Path):
    """A single .npy is told to be one, with the folder to name."""
    np.save(tmp_path / "cube.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match=rf"cube\.npy: is a single \.npy file.*name its folder {tmp_path}$"):
        open_source(tmp_path / "cube.npy")


def test_the_stored_command_repeats_the_figures():
    """Every flag that changes a figure stands in the stored command."""
    config = EvaluateConfig(
        model_path="a b", baseline_model=("x", "y"), refine=20, robustness=True, figures=0
    )
    script, *flags = shlex.split(command_of(config, MachineOptions(seed=1, device="cpu")))[1:]
    parsed = parse(flags, EvaluateConfig, MachineOptions)
    assert script == "scripts/velocity_inversion/evaluate.py"
    assert parsed.config == replace(config, figures=EvaluateConfig.figures)
    assert parsed.run == MachineOptions(seed=1)
