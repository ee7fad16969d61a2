"""The network: its weights, its start, what a cell may know, and equal results on every route."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.log import get_logger
from common.optim import parameter_count
from tests.voxel_ode.cases_model import SMALL, make_batch, make_fields, make_model, make_normalizer, part_of
from voxel_ode.config import KERNEL_MODES, ModelConfig, TrainConfig
from voxel_ode.convolutions import (
    BACKENDS,
    Conv,
    backends_of,
    choose_backends,
    convolve,
    set_backends,
)
from voxel_ode.fields import Fields, Frame
from voxel_ode.layers import NORMS, RunningNorm
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.rollout_core import Rollout
from voxel_ode.train import build_model

WEIGHTS = {
    (128, 12, 3): (11_722_566, 3_211_590, 135_978_822),
    (64, 8, 2): (2_016_902, 575_622, 8_439_430),
    (32, 4, 2): (311_206, 139_302, 1_114_022),
    (16, 4, 2): (94_774, 55_926, 295_478),
}


def count(c: int, depth: int, r: int, **changes: Any) -> int:
    """Return the number of weights of an architecture, without allocating them."""
    config = ModelConfig(base_channels=c, depth=depth, receptive_field_radius=r, **changes)
    with torch.device("meta"):
        return parameter_count(VoxelAutoRegressor(config, make_normalizer()))


@pytest.mark.parametrize("size", WEIGHTS, ids=str)
def test_weight_counts(size: tuple[int, int, int]):
    """The three layouts have exactly the published numbers of weights."""
    found = tuple(count(*size, kernel_mode=mode, flux_inputs=False) for mode in KERNEL_MODES)
    assert found == WEIGHTS[size]


def test_weights_of_options():
    """Flux inputs add five channels, a gate that reads all inputs, and one number; a level its blocks."""
    c, r = 16, 2
    plain = count(c, 4, r, flux_inputs=False)
    inputs = 13 + 5
    assert count(c, 4, r) - plain == 5 * c * (2 * r + 1) ** 3 + 2 * inputs + 1
    assert count(c, 4, r, predict="absolute") - plain == 5 * c * (2 * r + 1) ** 3
    block = 54 * c**2 + 4 * c + 27 * 2 * c
    assert count(c, 4, r, flux_inputs=False, multiscale=2) - plain == 2 * (2 * block + c**2)
    pooled = count(c, 4, r, flux_inputs=False, scalar_head="pooled")
    assert pooled - plain == (c**2 + c) + (5 * c + 5) - 2756
    hidden = count(c, 4, r, flux_inputs=False, film_hidden=8)
    assert hidden - plain == (27 * 8 + 9 * 8) + 4 * (9 - 27) * 2 * c


def test_many_weights_are_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A network above the limit is built with a warning that names its weights and the lighter mode."""
    monkeypatch.setattr(get_logger(), "propagate", True)  # to where caplog listens
    normalizer = make_normalizer()
    build_model(TrainConfig(**SMALL), normalizer)
    assert not caplog.records
    monkeypatch.setattr("voxel_ode.train.LARGE_WEIGHTS", 1000)
    model = build_model(TrainConfig(**SMALL, kernel_mode="dense"), normalizer)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"{parameter_count(model):,} weights; --kernel_mode stem" in said


@pytest.mark.parametrize("flux_inputs", [True, False])
def test_untrained_network_copies(flux_inputs: bool):
    """With delta output the untrained network returns the state it was given, bit for bit."""
    config = ModelConfig(
        base_channels=6, depth=2, receptive_field_radius=1, multiscale=1, flux_inputs=flux_inputs
    )
    fields = make_fields((6, 5, 7))
    following, _ = VoxelAutoRegressor(config, make_normalizer())(fields)
    assert torch.equal(following, fields.state)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("multiscale", [0, 2])
def test_inactive_cells_do_not_matter(norm: str, multiscale: int):
    """Any finite number on inactive cells, in any input, leaves the prediction unchanged bit for bit."""
    model = make_model(norm=norm, multiscale=multiscale).eval()
    batch = make_batch((9, 6, 7))
    spoiled = dict(batch)
    off = 1 - batch["masks"][:, :1]
    for name in ("static", "rock", "porosity", "initial", "well_source"):
        spoiled[name] = batch[name] + 12345.0 * off
    spoiled["states"] = batch["states"] - 12345.0 * off[:, None]
    with torch.no_grad():
        clean, dirty = (model(Fields.from_batch(b)) for b in (batch, spoiled))
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert not (clean[0] * off).any()
    thermal = batch["masks"][:, 2]
    assert not (clean[0][:, 0] * thermal).any()


OPTIONS: list[dict[str, Any]] = [
    *({"kernel_mode": mode} for mode in KERNEL_MODES),
    *({"norm": norm} for norm in NORMS),
    *({"multiscale": level, "kernel_mode": "separable"} for level in (1, 2, 3)),
    {"predict": "absolute"},
    {"scalar_head": "pooled"},
    {"flux_inputs": False, "predict": "absolute"},
    {"film_hidden": 5},
    {"activation_checkpointing": True, "multiscale": 1},
    {"receptive_field_radius": 0, "depth": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_runs_on_odd_sizes(options: dict[str, Any]):
    """Forward and backward are finite, and every weight gets a gradient."""
    model = make_model(**options)
    fields = make_fields((9, 7, 5))
    following, scalars = model(fields)
    assert following.shape == fields.state.shape and scalars.shape == (2, 5)
    (following.square().sum() + scalars.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_checkpointing_changes_nothing():
    """Recomputed blocks give the gradients of kept ones."""
    gradients = []
    for switch in (False, True):
        model = make_model(activation_checkpointing=switch)
        model(make_fields())[0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"multiscale": 2}, {"flux_inputs": False}], ids=str)
def test_stem_once_equals_whole_stem(options: dict[str, Any]):
    """The static channels' share of the stem, computed once, plus the state's share is the whole stem."""
    model = make_model(**options).eval()
    fields = make_fields((8, 6, 7))
    with torch.no_grad():
        results = [model.step(model.static_features(fields, once=o), fields.state)[0] for o in (True, False)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


CASES = [
    ({}, (21, 3, 3)),
    ({"flux_inputs": False}, (15, 3, 3)),
    ({"kernel_mode": "separable", "receptive_field_radius": 2}, (23, 2, 3)),
    ({"kernel_mode": "dense", "receptive_field_radius": 2}, (29, 2, 2)),
    ({"multiscale": 1}, (43, 2, 2)),
    ({"multiscale": 2, "depth": 0}, (84, 1, 1)),
]


@pytest.mark.parametrize(("options", "shape"), CASES, ids=str)
def test_receptive_radius_is_the_reach_of_gradients(options: dict[str, Any], shape: tuple[int, int, int]):
    """No input further away changes a cell, and for some cell one at exactly that distance does."""
    model = make_model(**{**options, "base_channels": 4}).double().eval()
    fields = make_fields(shape, batch=24, share=1.1)  # the flux looks upstream only, so try many flows
    fields = Fields(**{k: v.double() if v.is_floating_point() else v for k, v in vars(fields).items()})
    furthest = 0
    middle = shape[0] // 2
    for z in range(middle - 2, middle + 2):
        state, static = (x.clone().requires_grad_() for x in (fields.state, fields.static))
        following, _ = model(replace(fields, state=state, static=static))
        following[:, :, z].sum().backward()
        used = sum((x.grad.abs().sum((0, 1, 3, 4)) > 0).int() for x in (state, static)).nonzero()[:, 0]
        furthest = max(furthest, int((used - z).abs().max()))
    assert furthest == model.receptive_radius < middle - 1


@pytest.mark.parametrize("options", [{}, {"multiscale": 1, "norm": "running"}], ids=str)
def test_a_part_with_its_halo_equals_the_whole(options: dict[str, Any]):
    """Tiles that begin at multiples of 2^L, with a halo of the receptive radius, give the whole's values."""
    model = make_model(**options).eval()
    halo = -(-model.receptive_radius // model.multiple) * model.multiple
    length = 2 * halo + 12
    fields = make_fields((length, 5, 6), batch=1)
    core = slice(halo + 4, halo + 8)
    window = slice(core.start - halo, core.stop + halo)
    with torch.no_grad():
        whole = model(fields)[0][:, :, core]
        part = model(part_of(fields, (window, slice(0, 5), slice(0, 6))))[0][:, :, halo : halo + 4]
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


def test_an_active_slab_equals_the_whole():
    """Empty layers around the active ones may be cut off when the cut is aligned to the coarse cells."""
    model = make_model(multiscale=2).eval()
    batch = make_batch((16, 6, 5), batch=1)
    for name, value in batch.items():
        if value.dim() >= 4 and name != "loss_mask":
            value[..., :8, :, :] = 0
    fields = Fields.from_batch(batch)
    with torch.no_grad():
        whole = model(fields)[0][:, :, 8:]
        slab = model(part_of(fields, (slice(8, 16), slice(0, 6), slice(0, 5))))[0]
    torch.testing.assert_close(slab, whole, rtol=1e-5, atol=1e-5)


def test_group_norms_refuse_to_be_local():
    """The model says which norms depend on the size of the region."""
    assert [make_model(norm=norm).uses_local_norm for norm in NORMS] == [True, True, False, False]


def test_frames_put_samples_on_the_coarse_grid():
    """Samples of different origins are embedded at their own offsets and come back unchanged."""
    x = torch.randn(2, 1, 5, 6, 4)
    frame = Frame.of(torch.tensor([[0, 4, 8], [3, 2, 1]]), x.shape[2:], 4)
    boxes = frame.embed(x)
    assert boxes.shape[2:] == (8, 8, 8)
    assert torch.equal(boxes[1, :, 3:8, 2:8, 1:5], x[1]) and torch.equal(boxes[0, :, :5, :6, :4], x[0])
    assert torch.equal(frame.extract(boxes), x)
    assert torch.count_nonzero(boxes) == x.numel()


def test_batch_of_patches_equals_single_patches():
    """A patch gives the same result beside a patch of another alignment as alone."""
    model = make_model(multiscale=2).eval()
    fields = make_fields((8, 9, 8), batch=2)
    fields = replace(fields, origin=torch.tensor([[0, 0, 0], [1, 2, 3]]))
    with torch.no_grad():
        both = model(fields)[0]
        alone = model(Fields(**{k: v[1:] for k, v in vars(fields).items()}))[0]
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)


def test_running_norm_becomes_local():
    """Frozen or in evaluation, the running norm uses its averages, which approach the samples' moments."""
    norm = RunningNorm(3, momentum=0.5)
    x = 2 + 3 * torch.randn(4, 3, 6, 6, 6)
    mask = torch.ones(4, 1, 6, 6, 6)
    for _ in range(20):
        norm(x, mask)
    torch.testing.assert_close(norm.running_mean, x.mean((1, 2, 3, 4)).mean()[None], rtol=1e-3, atol=1e-3)
    frozen = (norm(x, mask), setattr(norm, "frozen", True), norm(x, mask))
    assert not torch.equal(frozen[0], frozen[2])
    assert torch.equal(norm(x[..., :3], mask[..., :3]), frozen[2][..., :3])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "native"])
def test_convolution_routes_agree(backend: str, kernel: int):
    """Every route gives the native convolution and its gradients: 1e-5 in fp32, 2e-2 for bf16."""
    bound = 2e-2 if backend == "bf16" else 1e-5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 6, 7, 4, generator=generator).requires_grad_()
    w = (
        torch.randn(8, 5, kernel, kernel, kernel, generator=generator) / (5 * kernel**3) ** 0.5
    ).requires_grad_()
    results = []
    for name in ("native", backend):
        y = convolve(x, w, name)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))))
    for expected, found in zip(*results, strict=True):
        assert float((found - expected).norm() / expected.norm()) < bound


def test_backends_give_the_same_network():
    """The choice of routes changes the network's output by rounding only."""
    model = make_model(multiscale=1, kernel_mode="separable").eval()
    fields = make_fields((8, 6, 6))
    with torch.no_grad():
        expected = model(fields)[0]
        for backend in ("pad32", "gemm"):
            set_backends(model, choose_backends(model, backend, (2, 8, 6, 6), torch.device("cpu")))
            torch.testing.assert_close(model(fields)[0], expected, rtol=1e-5, atol=1e-5)


def test_auto_names_a_route_for_every_convolution():
    """The timed choice covers all convolutions, is plain data, and can be restored."""
    model = make_model(multiscale=1)
    names = choose_backends(model, "auto", (1, 6, 6, 6), torch.device("cpu"), seconds=0.05)
    assert set(names) == {n for n, m in model.named_modules() if isinstance(m, Conv)}
    assert set(names.values()) <= set(BACKENDS)
    set_backends(model, names)
    assert backends_of(model) == names


def test_rollout_feeds_on_its_own_predictions():
    """Each year's input is the year before as predicted, and energy adds up year by year."""
    model = make_model(multiscale=1).eval()
    fields = make_fields((6, 5, 4), batch=1)
    features = fields.well_now
    with torch.no_grad():
        years = list(Rollout(model, fields, features=lambda p, t: features).steps(3))
        state, total = fields.state, fields.previous_total
        for year in years:
            step = replace(fields, state=state, well_next=features, previous_total=total)
            expected, scalars = model(step)
            torch.testing.assert_close(year.state, expected, rtol=1e-4, atol=1e-5)
            physical = model.scales.physical_scalars(scalars)
            torch.testing.assert_close(year.scalars, physical, rtol=1e-3, atol=1e-3)
            state, total = year.state, year.scalars[:, 2]
    grown = years[1].scalars[:, 2] - years[0].scalars[:, 2]
    torch.testing.assert_close(grown, years[1].scalars[:, 1] * fields.dt_s, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "change", [{"depth": -1}, {"depth": 2**63}, {"base_channels": 0}, {"film_hidden": 10**6}]
)
def test_sizes_that_no_network_has(change: dict[str, int]):
    """Sizes of a damaged checkpoint are refused before anything is built."""
    with pytest.raises(ValueError, match=f"--{next(iter(change))} .*: expected "):
        ModelConfig(**change)
