"""What a user names as model, output and data: folders of trainings, other names of flags, what is said."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.cli import parse
from common.errors import DataError
from common.run import MachineOptions
from fault_seg.config_infer import EvaluateConfig, InferConfig, RefineConfig
from fault_seg.config_tools import ConvertConfig, ExportConfig, ObjectsConfig
from fault_seg.evaluate_refine import command_of
from fault_seg.export import export
from fault_seg.infer import load
from fault_seg.pair_files import find_images
from fault_seg.volumes import open_volume
from fault_seg.weight_files import read_weights
from tests.fault_seg.cases import QUICK, save_model


@pytest.mark.parametrize("kind", [InferConfig, RefineConfig, ConvertConfig, ObjectsConfig, ExportConfig])
def test_every_output_is_also_out(kind: type[Any]):
    """`--out` is `--output`, and `--model_path` is `--model`, wherever there is one."""
    models = ["--model_path", "m.ckpt"] if "model" in kind.__dataclass_fields__ else []
    inputs = ["--input", "a.npy"] if "input" in kind.__dataclass_fields__ else []
    config = parse([*models, *inputs, "--out", "x.pth"], kind, MachineOptions).config
    assert config.output == "x.pth" and getattr(config, "model", "m.ckpt") == "m.ckpt"


def test_a_training_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run's folder means its best checkpoint, else its last; which one is said and kept as the path."""
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(DataError, match=r"run: is a folder, expected in it best\.ckpt or last\.ckpt; name"):
        load(run)
    save_model(run / "last.ckpt", ("dhr",))
    assert load(run).path == run / "last.ckpt" and "taking last.ckpt" in capsys.readouterr().err
    save_model(run / "best.ckpt", ("fault",))
    assert read_weights(run).config["heads"] == ["fault"] and "taking best.ckpt" in capsys.readouterr().err
    with pytest.raises(DataError, match="absent: no such checkpoint file or folder of a training"):
        load(tmp_path / "absent")


def test_a_training_is_exported(tmp_path: Path):
    """Export takes the folder, and still does not write over the very file that it reads."""
    save_model(tmp_path / "best.ckpt", ("dhr",))
    made = export(ExportConfig(model=str(tmp_path), output=str(tmp_path / "x.pth")), QUICK)
    assert made["heads"] == ["dhr"] and (tmp_path / "x.pth").is_file()
    (tmp_path / "y.pth").hardlink_to(tmp_path / "best.ckpt")
    with pytest.raises(Exception, match="is the model itself"):
        export(
            ExportConfig(model=str(tmp_path), output=str(tmp_path / "y.pth")), replace(QUICK, overwrite=True)
        )


def test_the_stored_command_repeats_the_figures():
    """Every flag that changes a figure stands in the command that is stored beside it, and no other."""
    model: Any = SimpleNamespace(path=Path("my run/best.ckpt"))
    config = EvaluateConfig(model="my run", tta=8, nvalid=3, baselines=("coherence", "unet"), figures=False)
    command = command_of(config, model, MachineOptions(seed=5, device="cpu", overwrite=True))
    script, *flags = shlex.split(command)[1:]
    parsed = parse(flags, EvaluateConfig, MachineOptions)
    assert script == "scripts/fault_seg/evaluate.py"
    assert parsed.config == replace(config, model="my run/best.ckpt", figures=True)
    assert parsed.run == MachineOptions(seed=5)
    survey = EvaluateConfig(input="a.sgy", labels="l.csv", labelled_inlines=(3, 5))
    flags = shlex.split(command_of(survey, model, MachineOptions()))[2:]
    assert "--data" not in flags
    assert parse(flags, EvaluateConfig, MachineOptions).config == replace(survey, model="my run/best.ckpt")


def test_advice_fits_the_command(tmp_path: Path):
    """Sizes that a preset brought are named as such; an empty folder gets the advice of who reads it."""
    np.save(tmp_path / "cube.npy", np.zeros((8, 6, 5), np.float32))
    with pytest.raises(DataError, match="by --n1 --n2 --n3 or the preset; give --n1 8 --n2 6 --n3 5"):
        open_volume(tmp_path / "cube.npy", (32, 32, 32))
    with pytest.raises(
        DataError, match="run make_data.py, or name the folder of another data set by --data$"
    ):
        find_images(tmp_path / "data_valid")
    with pytest.raises(DataError, match="holds no 0.bin or .npy; train with --synthetic$"):
        find_images(tmp_path, advice="train with --synthetic")
