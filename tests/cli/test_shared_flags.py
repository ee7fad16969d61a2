"""One meaning, one flag: the names of one package work in every other that has the meaning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import facies_gan.config
import facies_gan.config_data
import facies_gan.config_evaluate
import facies_gan.config_generate
import fault_seg.config
import fault_seg.config_infer
import fault_seg.config_tools
import simulgen_vae.config
import simulgen_vae.config_data
import simulgen_vae.config_infer
import simulgen_vae.config_tools
import velocity_inversion.config
import velocity_inversion.config_tools
import voxel_ode.config
import voxel_ode.config_make
import voxel_ode.config_tools
from common.cli import flags_of, parse
from common.errors import UserError
from common.run import BasicOptions, MachineOptions, TrainOptions

TRAIN = {
    "facies_gan": facies_gan.config.TrainingOptions,
    "velocity_inversion": velocity_inversion.config.TrainConfig,
    "fault_seg": fault_seg.config.TrainConfig,
    "simulgen_vae": simulgen_vae.config.TrainConfig,
    "voxel_ode": voxel_ode.config.TrainConfig,
}
MAKE = {
    "facies_gan": facies_gan.config_data.MakeDataConfig,
    "fault_seg": fault_seg.config.DataConfig,
    "simulgen_vae": simulgen_vae.config_data.MakeDataConfig,
    "voxel_ode": voxel_ode.config_make.MakeDataConfig,
}
EXPORT = {
    "velocity_inversion": velocity_inversion.config_tools.ExportConfig,
    "simulgen_vae": simulgen_vae.config_infer.ExportConfig,
}
PREDICT = {
    "facies_gan": facies_gan.config_generate.GenerateConfig,
    "velocity_inversion": velocity_inversion.config_tools.InferConfig,
    "simulgen_vae": simulgen_vae.config_infer.InferConfig,
}
EVALUATE = {
    "facies_gan": facies_gan.config_evaluate.EvaluateConfig,
    "velocity_inversion": velocity_inversion.config_tools.EvaluateConfig,
    "fault_seg": fault_seg.config_infer.EvaluateConfig,
    "simulgen_vae": simulgen_vae.config_tools.EvaluateConfig,
    "voxel_ode": voxel_ode.config_tools.EvaluateConfig,
}
DATA = {
    "facies_gan": "input_path",
    "velocity_inversion": "train_data_path",
    "fault_seg": "data",
    "simulgen_vae": "data",
    "voxel_ode": "prepped_root",
}
STEPS = {"velocity_inversion": "max_steps", "fault_seg": "steps", "voxel_ode": "max_steps"}
EPOCHS = {"velocity_inversion": "num_epochs", "fault_seg": "epochs", "simulgen_vae": "epochs"}
EMA = {"velocity_inversion": "ema_decay", "fault_seg": "ema", "simulgen_vae": "ema", "voxel_ode": "ema_decay"}
CLIP = {"velocity_inversion": "grad_clip", "simulgen_vae": "gradient_clip_val", "voxel_ode": "grad_clip"}
RECOMPUTE = {
    "velocity_inversion": "gradient_checkpointing",
    "simulgen_vae": "checkpointing",
    "voxel_ode": "activation_checkpointing",
}
BATCHES = {"velocity_inversion": "accumulate", "fault_seg": "accumulate", "voxel_ode": "accum_steps"}
LR = {
    "velocity_inversion": "learning_rate",
    "fault_seg": "lr",
    "simulgen_vae": "lr",
    "voxel_ode": "lr",
}
SIZE = {"facies_gan": "batch_size", "velocity_inversion": "batch_size", "fault_seg": "batch_train"} | {
    "simulgen_vae": "batch_size",
    "voxel_ode": "batch_size",
}
COUNT = {"facies_gan": "num_sections", "simulgen_vae": "num", "voxel_ode": "num_sims"}
MODEL = {"facies_gan": "model_path", "velocity_inversion": "model_path", "simulgen_vae": "model"}
SCORED = {**MODEL, "fault_seg": "model", "voxel_ode": "ckpt_path"}

# names of the meaning, a word that is no default, the configurations, the field of each package that has it
TABLE: list[tuple[tuple[str, ...], str, dict[str, Any], dict[str, str]]] = [
    (("data",), "elsewhere", TRAIN, DATA),
    (("steps", "max_steps"), "7", TRAIN, STEPS),
    (("epochs", "num_epochs"), "7", TRAIN, EPOCHS),
    (("ema", "ema_decay"), "0.25", TRAIN, EMA),
    (("grad_clip", "gradient_clip_val"), "0.25", TRAIN, CLIP),
    (("gradient_checkpointing",), "true", TRAIN, RECOMPUTE),
    (("accumulate", "accum_steps"), "2", TRAIN, BATCHES),
    (("warmup_steps",), "7", TRAIN, {"fault_seg": "warmup_steps", "voxel_ode": "warmup_steps"}),
    (("lr",), "0.25", TRAIN, LR),
    (("batch_size",), "6", TRAIN, SIZE),
    (("num",), "7", MAKE, COUNT),
    (("num_train",), "7", MAKE, {"fault_seg": "ntrain"}),
    (("num_val",), "7", MAKE, {"fault_seg": "nvalid"}),
    (("format", "to"), "onnx", EXPORT, {"velocity_inversion": "format", "simulgen_vae": "to"}),
    (("model", "model_path"), "m", PREDICT, MODEL),
    (("model",), "m", EVALUATE, SCORED),
]
CASES = [
    pytest.param(name, word, kinds[package], field, id=f"{package}-{field}-{name}")
    for names, word, kinds, fields in TABLE
    for package, field in fields.items()
    for name in names
]
NEEDED = {  # what a configuration cannot do without
    voxel_ode.config_tools.EvaluateConfig: ["--prepped_root", "p"],
    velocity_inversion.config_tools.InferConfig: ["--test_data_path", "d"],
    simulgen_vae.config_infer.InferConfig: ["--params", "p.csv"],
}


def run_options(kind: type[Any]) -> type[Any]:
    """Return the run options of the scripts that take this configuration."""
    if kind in TRAIN.values():
        return TrainOptions
    return BasicOptions if kind in MAKE.values() else MachineOptions


@pytest.mark.parametrize(("name", "word", "kind", "field"), CASES)
def test_a_shared_name_sets_the_field(name: str, word: str, kind: type[Any], field: str, tmp_path: Path):
    """A shared name does what the own name does; what is stored tells the field's own name."""
    needed = NEEDED.get(kind, [])
    own, shared = (
        parse([*needed, f"--{flag}", word], kind, run_options(kind))
        for flag in (field, name.replace("_", "-"))
    )
    default = next(f.default for f in dataclasses.fields(kind) if f.name == field)
    assert own == shared and getattr(shared.config, field) != default
    assert shared.origins[field] == "command line" and f"--{field} {word}" in flags_of(shared.config)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"config": dataclasses.asdict(shared.config)}, default=str))
    assert parse(["--config", str(stored)], kind, run_options(kind)).config == shared.config


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("facies_gan", "steps"),  # its iterations are of a group of scales
        ("facies_gan", "epochs"),
        ("facies_gan", "lr"),  # it has two
        ("velocity_inversion", "warmup_steps"),  # its warm-up is a fraction
        ("simulgen_vae", "warmup_steps"),
        ("simulgen_vae", "steps"),
        ("voxel_ode", "epochs"),
    ],
)
def test_no_name_for_another_meaning(package: str, name: str):
    """A name that would mean something else is refused."""
    with pytest.raises(UserError, match="unknown flag"):
        parse([f"--{name}", "1"], TRAIN[package], TrainOptions)
