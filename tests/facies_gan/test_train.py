"""Training: what a run leaves, exact resume, joint groups, growth, and work that is not done twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import plain_tree
from common.errors import DataError, UserError
from facies_gan import neural_smoother, run_files, samples
from facies_gan.config import RunOptions, TrainingOptions, TrainningOptions
from facies_gan.group import plan_groups
from facies_gan.interpolators import AreaInterpolator
from facies_gan.model_card import ModelCard
from facies_gan.model_files import find_model, load
from facies_gan.setup import prepare
from facies_gan.simulator import Conditioning, realisation_noise, rebuild
from facies_gan.step_profiler import StepProfiler
from facies_gan.train import DRY_RUN_SECTIONS, _try_one_batch, train
from tests.facies_gan.cases_gan import options, run_options, task_of, trained, write_folder, write_image
from tests.toy_runs import differences
from tests.toy_runs import load as read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run: one image, three scales, two groups, 3 + 3 iterations."""
    folder = tmp_path_factory.mktemp("finished")
    return trained(
        folder, run={"save_every": 2, "tensorboard": True, "use_profiler": True, "profile_steps": 1}
    )


def labels_of(path: Path, count: int = 2) -> np.ndarray:
    """Return realisations of a model."""
    model = load(path)
    told = Conditioning(model.card, model.card.size)
    return model.realise(told, realisation_noise(model.card, 0), range(count)).labels


def test_files_of_a_run(run: Path):
    """A run leaves the house's files, model.pt, options.json, wells.npz and a folder for every scale."""
    for name in (
        "model.pt",
        "options.json",
        "wells.npz",
        "config.json",
        "metrics.jsonl",
        "checkpoints/last.pt",
    ):
        assert (run / name).is_file(), name
    for k in range(3):
        for name in ("generator.pt", "discriminator.pt", "noise_amp.pt", "shape.json"):
            assert (run / str(k) / name).is_file(), name
        assert list((run / str(k)).glob("events*"))
        assert list((run / str(k)).glob("samples/*.png")), k
    assert list(run.glob("tensorboard_logs/events*"))
    assert json.loads((run / "2/shape.json").read_text()) == {"scale": 2, "height": 32, "width": 40}
    weights = read(run / "model.pt")["state_dict"]
    assert all(name.startswith("generators.") for name in weights) and len(weights) == 30
    assert json.loads((run / "options.json").read_text())["stop_scale"] == 2
    names = set(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    assert {
        "Scale_0/D_Penalty",
        "Scale_1/G_Well_Constraint",
        "Mean/G_Total",
        "LearningRate/generator",
    } <= names
    scored = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data_accuracy_before_injection"] for line in scored if "variogram_mae" in line]
    assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)  # though the image has no wells
    trace = json.loads((run / "profiler_trace.json").read_text())
    assert trace["traceEvents"] and (run / "profiler_trace.json").stat().st_size < 100_000_000


def test_profile_of_a_short_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A run that ends inside the window says how much was profiled, one that ends before it that none was."""
    for steps, text in ((7, "profile of 2 iterations"), (4, "nothing profiled in 4 iterations")):
        profiler = StepProfiler(tmp_path, 20, torch.device("cpu"))
        for _ in range(steps):
            profiler.before()
            torch.ones(2).sum()
            profiler.after()
        profiler.close()
        assert text in caplog.text


def test_model_from_scale_folders(run: Path, tmp_path: Path):
    """Without model.pt a run's folder, and one of runs, hold the same weights and give the same labels."""
    shutil.copytree(run, tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "model.pt").unlink()
    expected = labels_of(run)
    again, first = find_model(tmp_path / "runs" / "one"), find_model(run)
    assert not differences(again.state_dict, first.state_dict)  # though the first group ended unevaluated
    assert not differences(plain_tree(again.normalization), first.normalization)
    assert np.array_equal(labels_of(tmp_path / "runs" / "one"), expected)
    assert np.array_equal(labels_of(tmp_path / "runs"), expected)
    assert np.array_equal(labels_of(run / "checkpoints" / "last.pt"), expected)


def test_resume_is_exact(run: Path, tmp_path: Path):
    """A run stopped inside its second group and continued equals the uninterrupted one bit for bit."""
    stopped = tmp_path / "run"
    (stopped / "checkpoints").mkdir(parents=True)
    middle = read(run / "checkpoints" / "step4.pt")
    assert middle["training"]["task"]["group"] == 1 and middle["step"] == 4
    shutil.copy(run / "checkpoints" / "step4.pt", stopped / "checkpoints" / "step4.pt")
    trained_on = json.loads((run / "options.json").read_text())["training_image"]
    changes = {"training_image": Path(trained_on), "cache_dir": tmp_path / "cache"}
    train(options(**changes), run_options(stopped, resume="auto", save_every=2))
    one, two = read(run / "checkpoints" / "last.pt"), read(stopped / "checkpoints" / "last.pt")
    for part in ("state_dict", "normalization", "step"):
        assert not differences(one[part], two[part])
    assert not differences(one["training"]["task"], two["training"]["task"])
    first, again = load(run), load(stopped)
    anchors = first.card.anchors[0], again.card.anchors[0]
    assert torch.equal(anchors[0].z_rec, anchors[1].z_rec) and first.card.amplitudes == again.card.amplitudes
    assert np.array_equal(rebuild(first, anchors[0]), rebuild(again, anchors[1]))


def test_growing(run: Path, tmp_path: Path):
    """A larger --stop_scale on resume adds finer scales and leaves the old ones as they were."""
    grown = tmp_path / "run"
    image = write_image(tmp_path / "image.png")
    changes = {"training_image": image, "cache_dir": tmp_path / "cache"}
    train(options(max_size=20, stop_scale=1, min_size=12, **changes), run_options(grown))
    before = read(grown / "model.pt")
    train(options(max_size=40, stop_scale=3, min_size=12, **changes), run_options(grown, resume="auto"))
    after = read(grown / "model.pt")
    old = {name: value for name, value in after["state_dict"].items() if name in before["state_dict"]}
    assert not differences(before["state_dict"], old)
    card = ModelCard.from_dict(after["normalization"])
    assert card.num_trained == 4 and card.scales(card.size)[1] == (16, 20) and card.size == (32, 40)
    (grown / "model.pt").unlink()
    again = find_model(grown)  # the old scales' folders tell the larger pyramid
    for part in ("state_dict", "normalization"):
        assert not differences(plain_tree(getattr(again, part)), after[part])
    with pytest.raises(UserError, match="--stop_scale 1: the resumed model has scales 0 to 3"):
        train(options(stop_scale=1, **changes), run_options(grown, resume="auto"))


def test_starting_from_a_model(run: Path, tmp_path: Path):
    """--start_scale trains the rest above an earlier model; --fine_tune goes on from all its weights."""
    image = write_image(tmp_path / "other.png")
    changes = {"training_image": image, "cache_dir": tmp_path / "cache", "num_iter": 1}
    train(options(start_scale=2, **changes), run_options(tmp_path / "a", resume=str(run)))
    kept, old = read(tmp_path / "a/model.pt")["state_dict"], read(run / "model.pt")["state_dict"]
    changed = {name.split(".")[1] for name in old if not torch.equal(kept[name], old[name])}
    assert changed == {"2"}
    train(options(fine_tune=True, lr_g=0.0, **changes), run_options(tmp_path / "b", resume=str(run)))
    assert not differences(read(tmp_path / "b/model.pt")["state_dict"], old)
    for flags in ({"start_scale": 1}, {"fine_tune": True}):
        with pytest.raises(UserError, match="needs --resume PATH"):
            train(options(**flags, **changes), run_options(tmp_path / "c"))
    other = write_image(tmp_path / "three.png", num_classes=3)
    with pytest.raises(DataError, match="no facies of the palette"):
        other_options = options(fine_tune=True, **{**changes, "training_image": other})
        train(other_options, run_options(tmp_path / "d", resume=str(run)))


def test_joint_group(tmp_path: Path):
    """A fine scale's loss reaches the coarser block of its group; frozen ones neither feel nor change."""
    task, setup = task_of(tmp_path, group_crop_size=(40, 40))
    task.start_phase("group 1")
    trainer = task.trainer
    batch = setup.samples.batch(setup.plans[0], 0)
    results = trainer.generator(*trainer.inputs(batch, 0, rebuild=True))
    (gradient,) = torch.autograd.grad(
        results[1].fake[:, 0].square().sum(), task.blocks[0].convolutions[0].weight
    )
    assert gradient.abs().sum() > 0
    task.step(batch, 0)
    task.start_phase("group 2")
    frozen = {k: {n: v.clone() for n, v in task.blocks[k].state_dict().items()} for k in (0, 1)}
    task.step(setup.samples.batch(setup.plans[1], 0), 1)
    assert all(p.grad is None or not p.requires_grad for k in (0, 1) for p in task.blocks[k].parameters())
    assert not differences(frozen, {k: task.blocks[k].state_dict() for k in (0, 1)})


@pytest.mark.parametrize(("steps", "frozen_runs"), [((1, 1), 1), ((3, 2), 4)])
def test_operation_counts(tmp_path: Path, steps: tuple[int, int], frozen_runs: int):
    """Frozen scales run once a noise draw; one update each needs one group pass, three critic passes."""
    critic_steps, generator_steps = steps
    task, setup = task_of(tmp_path, discriminator_steps=critic_steps, generator_steps=generator_steps)
    task.start_phase("group 1")
    task.start_phase("group 2")
    counts = {"frozen": 0, "group": 0, "critic": 0}

    def count(name: str):
        return lambda *_: counts.__setitem__(name, counts[name] + 1)

    task.blocks[0].register_forward_hook(count("frozen"))
    task.trainer.generator.register_forward_hook(count("group"))
    task.critics[2].register_forward_hook(count("critic"))
    batch = setup.samples.batch(setup.plans[1], 1)  # an iteration without gradient penalty for one step
    task.step(batch, 1)
    assert counts["frozen"] == frozen_runs and counts["group"] == frozen_runs
    if steps == (1, 1):
        assert counts["critic"] <= 3


def test_coarse_wells_follow_the_sections_share(tmp_path: Path):
    """The target at a coarse cell with a datum is the section's own share there, not the datum."""
    task, setup = task_of(tmp_path, no_well_prob=0.0)
    plan = setup.plans[0]
    shares, data = [], []
    for i in range(20):
        batch = setup.samples.batch(plan, i)
        mask = batch.real_condition[0][:, 2] > 0
        shares.append(batch.real[0][:, 1][mask])
        data.append(batch.real_condition[0][:, 1][mask])
    shares, data = torch.cat(shares), torch.cat(data)
    assert not setup.injects[0] and setup.injects[2]
    one = data == 1
    assert one.any() and shares[one].mean() < 0.9  # the datum says 1, the section's cell less


def test_amplitudes(tmp_path: Path):
    """a_0 is given; a_k = max(noise_amp RMSE(u(real_{k-1}), real_k), min_noise_amp)."""
    task, setup = task_of(tmp_path, noise_amp=2.0, scale0_noise_amp=1.5)
    error = setup.samples.amplitude_errors(1)
    assert setup.amplitude(0) == 1.5 and setup.amplitude(1) == max(2.0 * error, 0.1) and error > 0.05
    _, quiet = task_of(tmp_path, noise_amp=0.0)
    assert quiet.amplitude(2) == 0.1


def test_batches_do_not_depend_on_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two ranks with batch 2 see the samples, windows, data and noise of one rank with batch 4."""
    _, setup = task_of(tmp_path, batch_size=4)
    plan = setup.plans[1]
    one = setup.samples.batch(plan, 3)
    noise = samples.draw_noise(0, one, 2, 0, 3, "noise", range(3))
    halves = []
    for rank in range(2):
        monkeypatch.setattr(samples.distributed, "world_size", lambda: 2)
        monkeypatch.setattr(samples.distributed, "rank", lambda r=rank: r)
        half = setup.samples.batch(replace(plan, batch_size=2), 3)
        halves.append((half, samples.draw_noise(0, half, 2, 0, 3, "noise", range(3))))
    for k in range(3):
        assert torch.equal(torch.cat([h.condition[k] for h, _ in halves]), one.condition[k])
        assert torch.equal(torch.cat([z[k] for _, z in halves]), noise[k])
    assert torch.equal(torch.cat([h.real[0] for h, _ in halves]), one.real[0])


def test_sections_of_several_sizes(tmp_path: Path):
    """Sections of two sizes train in batches of one size each; cells of a scale are alike in all."""
    root = write_folder(tmp_path / "data", 2, shape=(24, 30))
    write_image(root / "facies" / "wide.png", np.tile(np.arange(4, dtype=np.uint8), (26, 15)), 4)
    changes = {"input_path": root, "cache_dir": tmp_path / "cache", "batch_size": 2, "num_iter": 4}
    train(options(**changes), run_options(tmp_path / "run"))
    card = load(tmp_path / "run").card
    assert card.mode == "zeros" and len(card.anchors) == 3 and card.palette.num_classes == 4
    sizes = {a.shape: card.scales(a.shape)[0] for a in card.anchors}
    assert sizes == {(24, 30): (12, 16), (26, 60): (14, 30)}


def test_same_seed_same_weights(run: Path, tmp_path: Path):
    """The same command gives the same model, another seed another."""
    again = trained(tmp_path / "a", run={"num_workers": 3})
    other = trained(tmp_path / "b", run={"seed": 5})
    weights = [read(folder / "model.pt")["state_dict"] for folder in (run, again, other)]
    assert not differences(weights[0], weights[1])
    assert len(differences(weights[0], weights[2])) > 20


def test_old_names():
    """TrainningOptions is TrainingOptions; --beta is the weight of the data unless that is given itself."""
    assert TrainningOptions is TrainingOptions
    assert (
        options(beta=3.0).well_weight == 3.0 and options(beta=3.0, well_loss_penalty=4.0).well_weight == 4.0
    )
    assert options().well_weight == 10.0 and options(num_scales=2).stop_scale == 1


def test_refusals(tmp_path: Path):
    """Flags that cannot work are named, with what would."""
    image = write_image(tmp_path / "image.png")
    base = {"training_image": image, "cache_dir": tmp_path / "cache"}
    run = run_options(tmp_path / "run", dry_run=True)
    for changes, text in (
        ({"wells_mask_columns": (40,)}, "--wells_mask_columns 40: image has columns 0 to 39"),
        ({"wells_mask_columns": (4,), "use_wells": False}, "needs wells"),
        ({"stop_scale": 12}, "--stop_scale 12: two scales"),
    ):
        with pytest.raises(UserError, match=text):
            train(options(**base, **changes), run)
    for changes in (
        {"min_size": 11},
        {"kernel_size": 4},
        {"crop_size": 11},
        {"start_scale": 5},
        {"num_layer": 8},
    ):
        with pytest.raises(ValueError, match="--"):
            options(**changes)
    with pytest.raises(UserError, match="--timestamp"):
        train(options(**base), RunOptions(out=tmp_path / "run", timestamp=True, resume="auto", use_cpu=True))


def test_damaged_scale_folder(run: Path, tmp_path: Path):
    """A weight of another shape, and a file of another kind, are refused by name."""
    found = find_model(run)
    card = ModelCard.from_dict(found.normalization)
    weights = {**found.state_dict, "generators.1.convolutions.0.weight": torch.zeros(3)}
    with pytest.raises(DataError, match="scale 1 does not fit"):
        run_files.blocks_from(card, weights, "model.pt")
    with pytest.raises(DataError, match="kind 'critic', expected gan"):
        find_model(run / "0" / "discriminator.pt")
    with pytest.raises(DataError, match="holds no run"):
        find_model(tmp_path)


def test_dry_run_leaves_nothing(tmp_path: Path):
    """A dry run tries every group and writes no run folder."""
    image = write_image(tmp_path / "image.png")
    changes = {"training_image": image, "cache_dir": tmp_path / "cache"}
    assert train(options(**changes), run_options(tmp_path / "run", dry_run=True)) is None
    assert not (tmp_path / "run").exists()


def test_groups_follow_their_factors():
    """Iterations are num_iter times the first group's factor and the group's own; a list's end goes on."""
    o = options(
        stop_scale=5,
        num_iter=40,
        coarse_iter_factor=3.0,
        group_iter_factor=(0.5, 2.0),
        group_batch_size=(1, 4),
    )
    plans = plan_groups(o)
    assert [plan.iterations for plan in plans] == [60, 80, 80]
    assert [plan.batch_size for plan in plans] == [1, 4, 4]
    with pytest.raises(ValueError, match="--group_iter_factor: expected 0.01 or more"):
        options(group_iter_factor=(0.0,))
    with pytest.raises(ValueError, match="--group_crop_size 12.*the critic sees"):
        options(num_layer=7, min_size=16, group_crop_size=(40, 12))


@pytest.mark.parametrize("name", ["variogram", "connectivity", "diversity"])
def test_optional_terms_act(tmp_path: Path, name: str):
    """With its weight, of all groups or of this one, the loss has the term; the update is another one."""
    weights = []
    for changes in (
        {f"lambda_{name}": 0.0},
        {f"lambda_{name}": 20.0},
        {f"group_lambda_{name}": (20.0, 0.0), f"lambda_{name}": 0.0},
        {f"group_lambda_{name}": (0.0, 20.0)},
    ):
        task, setup = task_of(tmp_path, **changes)
        task.start_phase("group 1")
        values = task.step(setup.samples.batch(setup.plans[0], 2), 2)
        found = float(values.get(f"Scale_0/G_{name.title()}", 0.0))
        assert (found > 0) == (len(weights) in (1, 2))
        weights.append(task.weights())
    assert differences(weights[0], weights[1])
    assert not differences(weights[1], weights[2]) and not differences(weights[0], weights[3])


def test_dry_run_of_a_large_batch_is_quick(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A batch of 200 is told in full, but a few of its sections are run."""
    task, setup = task_of(tmp_path, batch_size=200)
    seen: list[int] = []
    step = task.step
    task.step = lambda batch, i: (seen.append(len(batch.positions)), step(batch, i))[1]
    _try_one_batch(task, setup.plans)
    assert seen == [DRY_RUN_SECTIONS] * len(setup.plans)


def test_smoothers_are_fitted_where_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neural smoothers go to the device of the training; a dry run fits none."""
    places: list[torch.device] = []

    def fit(images: list[np.ndarray], num_classes: int, **how: object) -> list[neural_smoother.Weights]:
        places.append(torch.device(str(how["device"])))
        return [neural_smoother.initial_weights(num_classes) for _ in images]

    monkeypatch.setattr(neural_smoother, "fit", fit)
    image = write_image(tmp_path / "image.png")
    changes = {"training_image": image, "cache_dir": tmp_path / "cache", "interpolator": "neural"}
    assert train(options(**changes), run_options(tmp_path / "run", dry_run=True)) is None and not places
    monkeypatch.setattr("facies_gan.cache.NeuralSmoother._pyramid", AreaInterpolator._pyramid)
    prepare(options(**changes), run_options(tmp_path / "run"), torch.device("meta"))
    train(options(**changes, clear_cache=True, num_iter=1), run_options(tmp_path / "run"))
    assert places == [torch.device("meta"), torch.device("cpu")]
