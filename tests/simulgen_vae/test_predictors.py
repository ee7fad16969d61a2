"""Predictors: what they learn, symmetry, state that travels, gradients, determinism; features, baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.noise import numpy_stream
from simulgen_vae import baselines, direct, field_net, gp2
from simulgen_vae.basis import fit_basis, identity_basis
from simulgen_vae.conditioner import Conditioner, ConditionerShape
from simulgen_vae.contenders import vae_net_contender
from simulgen_vae.contest import predict_rows
from simulgen_vae.direct import DirectOptions
from simulgen_vae.features import fit_features, informative_features
from simulgen_vae.field_metric import FieldMetric
from simulgen_vae.field_net import FieldNetOptions, area_average, level_shapes
from simulgen_vae.model import HierarchicalVae, Start, VaeShape
from simulgen_vae.pairs import build_predictor, fit_latent_gp, latents_of, pair_of
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet, mirrored
from simulgen_vae.reduced import fit_trajectory_pod
from simulgen_vae.refit import RefitOptions, fit_conditioner
from tests.simulgen_vae.cases_predictors import bumps, data_of, mirror, rows_for, training_set

DIRECT = DirectOptions(width=32, depth=2, num_nets=2, epochs=60)
FIELD_NET = FieldNetOptions(steps=80)
FITS: dict[str, Callable[[TrainingSet], Predictor]] = {
    "gp2": gp2.fit_predictor,
    "direct": lambda rows: direct.fit_predictor(rows, DIRECT),
    "field_net": lambda rows: field_net.fit_predictor(rows, FIELD_NET),
}


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Return thirty bumps with a declared symmetry."""
    return training_set(30, symmetric=True)


@pytest.fixture(scope="module")
def fitted(rows: TrainingSet) -> dict[str, Predictor]:
    """Return one predictor of each kind."""
    return {name: fit(rows) for name, fit in FITS.items()}


@pytest.fixture(scope="module")
def vae(rows: TrainingSet) -> HierarchicalVae:
    """Return a network at its start, the POD of the rows."""
    channels, frames = rows.c.shape[1:]
    shape = VaeShape(channels, frames, filters=(8, 8), latent_dim_end=6, latent_dim=2)
    pod = fit_trajectory_pod(rows.c.numpy(), shape.num_latents)
    start = Start(
        pod.mean.view(channels, frames), pod.modes.view(-1, channels, frames), pod.scales, rows.basis.sigma
    )
    return HierarchicalVae(shape, start).eval()


def error(predictor: Predictor, rows: TrainingSet) -> float:
    """Return the mean relative L2 error on some rows."""
    return float(FieldMetric(rows.basis).relative_l2(predict_rows(predictor, rows), rows.c).mean())


@pytest.mark.parametrize(("name", "share"), [("gp2", 0.1), ("direct", 0.5), ("field_net", 0.6)])
def test_they_learn(fitted: dict[str, Predictor], rows: TrainingSet, name: str, share: float):
    """On new bumps every predictor leaves a fraction of the error of the mean field."""
    new, _ = rows_for(rows, 40, seed=1)
    mean = FieldMetric(rows.basis).relative_l2(baselines.mean_field(rows, 40), new.c).mean()
    assert error(fitted[name], new) < share * float(mean)


@pytest.mark.parametrize("name", list(FITS))
def test_state_travels(fitted: dict[str, Predictor], rows: TrainingSet, name: str):
    """A predictor rebuilt from configuration and state gives the same numbers bit for bit."""
    again = build_predictor(fitted[name].config, basis=rows.basis)
    again.load_state_dict(fitted[name].state_dict())
    assert torch.equal(predict_rows(again, rows), predict_rows(fitted[name], rows))


@pytest.mark.parametrize("name", list(FITS))
def test_gradients_reach_the_parameters(fitted: dict[str, Predictor], rows: TrainingSet, name: str):
    """The derivative by each input parameter agrees with central differences."""
    params = rows.params[:1].double()

    def total(p: torch.Tensor) -> torch.Tensor:
        return fitted[name](Inputs(p)).double().square().sum()

    leaf = params.clone().requires_grad_()
    total(leaf).backward()
    assert leaf.grad is not None
    for k in range(params.shape[1]):
        step = torch.zeros_like(params)
        step[0, k] = 1e-2
        slope = float((total(params + step) - total(params - step)).detach()) / 2e-2
        assert float(leaf.grad[0, k]) == pytest.approx(
            slope, rel=0.05, abs=0.02 * abs(float(leaf.grad.abs().max()))
        )


@pytest.mark.parametrize("name", ["direct", "field_net"])
def test_fits_draw_from_their_seed_alone(rows: TrainingSet, name: str):
    """The global generator is neither read nor moved by a fit, and the seed decides everything."""
    few = rows.subset(torch.arange(12))
    short = {
        "direct": lambda r: direct.fit_predictor(r, dataclasses.replace(DIRECT, epochs=3)),
        "field_net": lambda r: field_net.fit_predictor(r, FieldNetOptions(steps=3)),
    }[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = predict_rows(short(few), few)
    torch.manual_seed(2)
    assert torch.equal(predict_rows(short(few), few), first)
    assert not torch.equal(predict_rows(short(dataclasses.replace(few, seed=1)), few), first)
    torch.set_rng_state(before)


def test_mirrored_coefficients_are_mirrored_fields(rows: TrainingSet):
    """Mapping coefficients equals decoding, mapping the field, and encoding; twice is the identity."""
    mapped = mirrored(rows.basis, mirror(), rows.c)
    fields = mirror().apply_fields(rows.basis.decode(rows.c))
    assert torch.allclose(rows.basis.decode(mapped), fields, atol=1e-4)
    assert torch.allclose(mirrored(rows.basis, mirror(), mapped), rows.c, atol=1e-4)


def test_augmentation_maps_everything_together():
    """A mirrored row carries the mirrored field, parameters and picture, and its original's group."""
    rows = training_set(10, symmetric=True, pictures=True)
    both, groups = rows.augmented()
    assert len(both) == 20 and torch.equal(groups[:10], groups[10:])
    assert torch.allclose(both.params[10:, 1], 1 - rows.params[:, 1])
    assert rows.images is not None and both.images is not None
    assert torch.equal(both.images[10:], rows.images.flip(1))
    start = both.basis.decode(both.c)[:, 0, :, 0].view(20, 8, 8)
    shown = torch.nn.functional.avg_pool2d(both.images[:, None].float(), 32)[:, 0] / 255
    assert (start - shown).abs().max() < 0.02


def test_gp2_obeys_the_symmetry(fitted: dict[str, Predictor], rows: TrainingSet):
    """Fitted to rows and mirror images, gp2 predicts mirrored fields for mirrored inputs."""
    inputs = rows_for(rows, 5, seed=2)[0].inputs()
    mapped = fitted["gp2"](Inputs(mirror().apply_params(inputs.params)))
    expected = mirrored(rows.basis, mirror(), fitted["gp2"](inputs))
    assert torch.allclose(mapped, expected, atol=2e-3 * float(expected.abs().max()))


def test_symmetry_helps(rows: TrainingSet):
    """With a declared symmetry ten runs predict better than without."""
    new, _ = rows_for(rows, 40, seed=3)
    few = rows.subset(torch.arange(10))
    assert error(gp2.fit_predictor(few), new) < error(
        gp2.fit_predictor(dataclasses.replace(few, symmetry=None)), new
    )


def test_spread_of_predictors(fitted: dict[str, Predictor], rows: TrainingSet):
    """gp2's draws have its std; networks disagree somewhere; a single network knows no spread."""
    inputs = rows_for(rows, 3, seed=4)[0].inputs()
    std, draws = fitted["gp2"].std(inputs), fitted["gp2"].draws(inputs, 3000, seed=0)
    assert std is not None
    assert torch.allclose(draws.std(0), std, rtol=0.15, atol=0.01 * float(std.max()))
    members = fitted["direct"].std(inputs)
    assert members is not None and members.max() > 0
    assert fitted["field_net"].std(inputs) is None
    assert torch.equal(*fitted["field_net"].draws(inputs, 2, seed=0))


def test_pairs_mix(fitted: dict[str, Predictor], rows: TrainingSet):
    """A pair is the convex mix of its members, its draws centre on it, and it is rebuilt from its state."""
    pair = pair_of(fitted["gp2"], fitted["field_net"], 0.25)
    inputs = rows.inputs().rows(slice(0, 4))
    expected = 0.25 * fitted["gp2"](inputs) + 0.75 * fitted["field_net"](inputs)
    assert torch.allclose(pair(inputs), expected)
    centre = pair.draws(inputs, 2000, seed=0).mean(0)
    assert torch.allclose(centre, expected, atol=0.05 * float(expected.abs().max()))
    again = build_predictor(pair.config, basis=rows.basis)
    again.load_state_dict(pair.state_dict())
    assert again.name == "gp2+field_net" and torch.equal(again(inputs), pair(inputs))


def test_an_ensemble_of_conditioners(rows: TrainingSet, vae: HierarchicalVae):
    """With --ensemble 3 the mean of three networks predicts, their spread is the draws', all is rebuilt."""
    shape = ConditionerShape("csv", 3, 6, 2, filters=(8,))
    options = RefitOptions(epochs=3, batch=8, lr=1e-3, weight_decay=0.0, max_cpu_s=2.0)

    def refit(part: TrainingSet) -> Conditioner:
        return fit_conditioner(part, vae, shape, options)

    first = refit(rows)
    predictor = vae_net_contender(vae, first, refit, 3).fit(rows)
    alone = vae_net_contender(vae, first, refit).fit(rows)
    inputs = rows.inputs().rows(slice(0, 3))
    members = predictor.members(inputs).detach()
    assert len(members) == 3 and torch.equal(members[0], alone(inputs))
    assert torch.allclose(predictor(inputs), members.mean(0)) and members.std(0).max() > 0
    draws = predictor.draws(inputs, 4000, seed=0).detach()
    assert torch.allclose(draws.std(0), members.std(0), rtol=0.1, atol=0.02 * float(members.std(0).max()))
    assert torch.equal(*alone.draws(inputs, 2, seed=0))
    again = build_predictor(predictor.config, basis=rows.basis, vae=vae, conditioner=first)
    again.load_state_dict(predictor.state_dict())
    assert torch.equal(again(inputs), predictor(inputs))


def test_gp_through_the_latents(rows: TrainingSet, vae: HierarchicalVae):
    """VAE + GP at the POD start predicts, leaves one out, and is rebuilt; its state holds no VAE weight."""
    predictor = fit_latent_gp(rows, vae)
    new, _ = rows_for(rows, 20, seed=6)
    best = FieldMetric(rows.basis).relative_l2(vae.reconstruct(new.c), new.c).mean()
    assert float(best.detach()) < error(predictor, new) < 0.5
    assert predictor.leave_one_out(rows).shape == rows.c.shape
    assert all(name.startswith("head.") for name in predictor.state_dict())
    again = build_predictor(predictor.config, basis=rows.basis, vae=vae)
    again.load_state_dict(predictor.state_dict())
    assert torch.equal(predict_rows(again, new), predict_rows(predictor, new))
    assert latents_of(vae, rows.c).shape == (30, vae.shape.num_latents)


def test_unknown_kinds_are_refused(rows: TrainingSet):
    """A configuration of no known kind, or one that misses its VAE, is refused by name."""
    for kind in ("fourier", "vae_gp"):
        with pytest.raises(ValueError, match=kind):
            build_predictor({"kind": kind}, basis=rows.basis)


def test_features_are_scaled_and_constants_drop_out():
    """Features have mean 0 and deviation 1; a column that never changed stays 0 whatever comes later."""
    rows = training_set(20)
    rows.params[:, 2] = 7.0
    features = fit_features(rows)
    x = features(rows.inputs())
    assert x[:, :2].mean(0).abs().max() < 1e-6 and torch.allclose(
        x[:, :2].std(0, correction=0), torch.ones(2).double()
    )
    assert (features(Inputs(rows.params + 1.0))[:, 2] == 0).all()


def test_a_picture_is_used_when_it_is_needed():
    """Places hidden from the numbers come from the picture; one that shows nothing is left out."""
    full = training_set(40, pictures=True)
    groups = torch.arange(40)
    grey = torch.from_numpy(numpy_stream(0, "test grey").integers(0, 255, (40, 256, 256)).astype(np.uint8))
    assert informative_features(dataclasses.replace(full, images=grey), groups).num_modes == 0
    hidden = dataclasses.replace(full, params=full.params[:, 2:])
    assert informative_features(hidden, groups).num_modes > 0
    blind = dataclasses.replace(hidden, images=None)
    new, _ = rows_for(full, 20, seed=7)
    u, params = bumps(20, 7)
    shown = np.kron(255 * u[:, 0, :, 0].reshape(-1, 8, 8), np.ones((32, 32))).astype(np.uint8)
    new = dataclasses.replace(new, params=torch.from_numpy(params[:, 2:]), images=torch.from_numpy(shown))
    assert error(gp2.fit_predictor(hidden), new) < 0.3 * error(gp2.fit_predictor(blind), new)


def test_field_net_reads_pictures_alone():
    """Without any number the grid network trains on pictures, and two pictures give two fields."""
    rows = training_set(12, pictures=True)
    rows.params = rows.params[:, :0]
    predictor = field_net.fit_predictor(rows, FieldNetOptions(steps=20))
    found = predict_rows(predictor, rows)
    assert torch.isfinite(found).all() and not torch.allclose(found[0], found[1])


def test_grids_of_any_size():
    """Levels follow ceil(n/2), and averaging a picture onto cells keeps its mean for odd sizes too."""
    assert level_shapes((5, 9)) == [(5, 9), (3, 5), (2, 3), (1, 2)]
    for size in (1, 5, 24, 64):
        matrix = area_average(size)
        assert torch.allclose(matrix.sum(1), torch.ones(size)) and torch.allclose(
            matrix.sum(0), torch.full((256,), size / 256)
        )


@pytest.mark.parametrize("identity", [False, True])
def test_metric_needs_no_field(identity: bool):
    """Norms and errors from coefficients equal those of decoded fields, also with two unequal units."""
    u, params = bumps(6)
    u = np.concatenate([u, 1000 * u[..., ::-1, :] + 5], axis=-1)
    data = data_of(u, params)
    basis = identity_basis(data, range(6)) if identity else fit_basis(data, range(6))
    c = basis.encode(torch.from_numpy(u))
    guess = c + 0.1 * c.roll(1, 0)
    true, found = basis.decode(c).double().flatten(1), basis.decode(guess).double().flatten(1)
    metric = FieldMetric(basis)
    assert torch.allclose(metric.norm2(c), true.square().sum(1), rtol=1e-4)
    assert torch.allclose(
        metric.relative_l2(guess, c), (found - true).norm(dim=1) / true.norm(dim=1), rtol=1e-3
    )


def test_direct_holds_out_whole_groups():
    """The tenth that stops a network keeps a sample and its mirror together, and differs between networks."""
    groups = torch.arange(30).repeat(2)
    masks = [direct.held_out_tenth(groups, 0, k) for k in range(10)]
    assert all(torch.equal(m[:30], m[30:]) and int(m.sum()) == 6 for m in masks)
    assert torch.stack(masks).sum(0).eq(1).all()


@pytest.mark.parametrize("name", baselines.NAMES)
def test_baselines_regress(name: str):
    """Every baseline beats the mean field by far on smooth data, and none beats the projection."""
    rows = training_set(40)
    new, _ = rows_for(rows, 20, seed=8)
    metric = FieldMetric(rows.basis)
    fitted = baselines.fit_baseline(name, rows, 6)
    assert fitted is not None and fitted.seconds > 0
    found = float(metric.relative_l2(fitted.predict(new), new.c).mean())
    oracle = float(metric.relative_l2(baselines.pod_oracle(rows, 6, new.c), new.c).mean())
    mean = float(metric.relative_l2(baselines.mean_field(rows, 20), new.c).mean())
    assert oracle <= found < 0.5 * mean


def test_per_coefficient_gpr_is_not_offered_to_many(monkeypatch: pytest.MonkeyPatch):
    """Beyond its limit of rows the per-coefficient regression is left out, the shared one goes on."""
    monkeypatch.setattr(baselines, "GPR_ROWS", 10)
    rows = training_set(14)
    assert baselines.fit_baseline("gpr", rows, 4) is None
    shared = baselines.fit_baseline("gpr_shared", rows, 4)
    assert shared is not None and torch.isfinite(shared.predict(rows)).all()
