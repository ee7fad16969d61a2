"""Flags of the training that no other test turns: each changes what is trained, or what is read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.guard import Guard
from common.metrics import relative_l2
from common.run import BasicOptions
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.config import TrainConfig
from simulgen_vae.config_data import MakeDataConfig, PrepDataConfig
from simulgen_vae.make_data import make_data
from simulgen_vae.phases import SurrogateTask
from simulgen_vae.predictors_phase import contenders_of
from simulgen_vae.prep import prep_data
from simulgen_vae.preparation import open_data, sample_set
from simulgen_vae.progress import PHASES
from simulgen_vae.queries import read_pictures
from simulgen_vae.scoring import field_errors, reconstruction_errors
from simulgen_vae.train import conditioner_shape_of, gather, make_task, make_training
from tests.simulgen_vae.cases_vae import config, fields, options, write_data, write_pictures

LONG = {"epochs": 3, "lc_epochs": 2, "use_e2e_training": True, "e2e_epochs": 2, "ema": 0.0, "lr": 0.01}
RESTARTS = {"lr_schedule": "warm_restarts", "lr_t0": 1, "epochs": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set."""
    return write_data(tmp_path_factory.mktemp("flags") / "bumps.npz")


def task_of(chosen: TrainConfig) -> SurrogateTask:
    """Return the task that a training of `chosen` works on."""
    settings, device = options(Path("none")), torch.device("cpu")
    inputs = gather(chosen, settings)
    return make_task(inputs, make_training(inputs, 0, device, None), settings, Guard(device))


def trained(chosen: TrainConfig) -> torch.Tensor:
    """Return all weights after each of the three phases; first weights and dropout are seeded."""
    torch.manual_seed(0)
    task = task_of(chosen)
    found = []
    for name in PHASES:
        task.start_phase(name)
        for number, batch in enumerate(task.batches(name)):
            task.step(batch, number)
        found += [p.detach().clone().flatten() for m in task.networks().values() for p in m.parameters()]
    return torch.cat(found)


@cache
def reference(chosen: TrainConfig) -> torch.Tensor:
    """Return `trained` of a configuration that several tests start from."""
    return trained(chosen)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"lc_lr": 1e-2}),
        ({}, {"lc_weight_decay": 0.5}),
        ({}, {"sample_weighting": "none"}),
        ({"alpha": 10.0}, {"kl_schedule": "cosine"}),
        ({"alpha": 10.0}, {"kl_start": 0.0}),
        ({"alpha": 10.0}, {"kl_end": 0.4}),
        (RESTARTS, {"lr_t0": 2}),
        (RESTARTS, {"lr_t_mult": 1}),
        ({}, {"warmup_fraction": 0.5}),
        ({}, {"eta_min": 5e-3}),
        ({}, {"e2e_epochs": 1}),
        ({}, {"lc_alpha": 30.0}),
        ({}, {"use_latent_regularization": False}),
        ({}, {"latent_reg_weight": 1.0}),
        ({}, {"augment": True}),
    ],
)  # fmt: skip
def test_it_acts(data: Path, base: dict[str, Any], change: dict[str, Any]):
    """The same training with one flag changed ends at other weights."""
    first = reference(config(data, **{**LONG, **base}))
    other = trained(config(data, **{**LONG, **base, **change}))
    assert torch.isfinite(first).all() and torch.isfinite(other).all()
    assert len(first) == len(other) and not torch.equal(first, other)


def test_the_same_flags_end_at_the_same_place(data: Path):
    """Without a change nothing differs: what the test above sees is the flag."""
    assert torch.equal(reference(config(data, **LONG)), trained(config(data, **LONG)))


def test_an_ensemble_is_trained(data: Path):
    """--ensemble 3 enters three conditioners into the contest as one; 0 is refused."""
    task = task_of(config(data, ensemble=3, lc_epochs=1))
    train = sample_set(task.data, task.data.split.train, 0)
    found = contenders_of(task.train_config, task.vae, task.conditioner, train)
    predictor: Any = next(c for c in found if c.name == "vae_net").fit(train)
    assert len(predictor.members(train.inputs())) == 3 and predictor.config["num_others"] == 2
    with pytest.raises(ValueError, match="--ensemble 0: expected 1 or more"):
        config(data, ensemble=0)


def test_errors_are_those_of_the_true_fields(data: Path):
    """With one spatial mode the stored errors hold what it leaves out, which coefficients do not know."""
    task = task_of(config(data, num_modes="1"))
    found = field_errors(task.data, task.data.extra["fields"], task.vae.eval())
    basis = task.data.front_end.basis
    with torch.no_grad():
        again = basis.decode(task.vae.reconstruct(basis.encode(torch.from_numpy(fields())))).numpy()
    errors = [relative_l2(u, truth) for u, truth in zip(again, fields(), strict=True)]
    assert found.tolist() == pytest.approx(errors, rel=1e-4)
    inside = reconstruction_errors(task.data, range(len(found)), task.vae, torch.device("cpu"))
    assert float(inside.max()) < 0.2 * float(found.min())


def test_compile_mode(data: Path, monkeypatch: pytest.MonkeyPatch):
    """--compile hands --compile_mode to encoder and decoder."""
    modes: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, mode: modes.append(mode))
    chosen = config(data, compile_mode="max-autotune")
    settings, device = options(Path("none"), compile=True), torch.device("cpu")
    inputs = gather(chosen, settings)
    make_task(inputs, make_training(inputs, 0, device, None), settings, Guard(device))
    assert modes == ["max-autotune", "max-autotune"]


def test_attention_can_be_left_out(data: Path):
    """--use_attention 0 takes channel and spatial attention out of the picture's network."""
    shape = task_of(config(data)).vae.shape
    counts = []
    for use in (True, False):
        chosen = conditioner_shape_of(config(data, use_attention=use), "image", 0, shape)
        counts.append(sum(p.numel() for p in Conditioner(chosen).parameters()))
    assert counts[0] > counts[1]


def test_frames_and_nodes_are_cut(data: Path):
    """--dim2_red keeps the first frames, --dim3_start and --dim3_end a range of nodes, of the very values."""
    whole, cut = (open_data(config(data, **c)) for c in ({}, {"dim2_red": 4, "dim3_start": 3, "dim3_end": 9}))
    assert cut.trajectory(2).shape == (4, 6, 1)
    np.testing.assert_array_equal(cut.trajectory(2), whole.trajectory(2)[:4, 3:9])


def test_pictures_of_a_folder(tmp_path: Path):
    """--image_dir and --image_suffix name the pictures that belong to the runs and to new inputs."""
    source = write_pictures(tmp_path / "d.npz")
    with np.load(source, allow_pickle=False) as found:
        np.save(tmp_path / "u.npy", found["fields"])
        images = found["images"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, picture in enumerate(images):
        Image.fromarray(picture).save(folder / f"{k}.png")
        Image.fromarray(255 - picture).save(folder / f"{k}.jpg", quality=100)
    flags = PrepDataConfig(str(tmp_path / "u.npy"), path=str(tmp_path / "c.h5"), image_dir=str(folder))
    prep_data(flags, BasicOptions())
    stored = open_data(config(tmp_path / "c.h5"))
    assert stored.images is not None
    np.testing.assert_array_equal(stored.images, images)
    for suffix in (".png", ".jpg"):
        found = read_pictures(str(folder), suffix, None)
        assert [Path(p).name for p in found[:3]] == [f"{k}{suffix}" for k in range(3)]


def test_data_without_pictures(tmp_path: Path):
    """--write_images 0 leaves the pictures out of the file."""
    made = MakeDataConfig("wave", 3, 8, 4, 3, str(tmp_path / "w.h5"), write_images=False, figures=False)
    make_data(made, BasicOptions())
    assert open_data(config(tmp_path / "w.h5")).images is None
