"""Conditioners: every kind, the linear start, un-scaling, and gradients that flow through the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simulgen_vae.conditioner import Conditioner, ConditionerShape, build_conditioner
from simulgen_vae.conditioner_image import DropPath, with_coordinates
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.objectives import ConditionerObjective, EndToEndObjective, Reconstruction
from tests.simulgen_vae.cases_vae import shake, tiny_vae

KINDS = ("csv", "image", "image_vit", "fusion")


def make(kind: str, **changes: Any) -> Conditioner:
    """Return a small conditioner for 3 parameters and the latents of `tiny_vae`."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_params": 3, "num_main": 4, "num_levels": 4, "filters": (8, 6)}
    return Conditioner(ConditionerShape(kind, **{**sizes, "dropout": 0.0, **changes}))


def inputs(count: int = 4) -> dict[str, torch.Tensor]:
    """Return parameters [B, 3] and pictures [B, 1, 256, 256]."""
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(count, 3, generator=generator, dtype=torch.float64) + 100.0
    return {"params": params, "image": torch.rand(count, 1, 256, 256, generator=generator)}


def targets(vae: HierarchicalVae, count: int = 4) -> dict[str, torch.Tensor]:
    """Return coefficients, latents and weights of random samples."""
    c = torch.randn(count, vae.shape.channels, vae.shape.frames, generator=torch.Generator().manual_seed(1))
    z, h = (part.detach() for part in vae.latents(c))
    return {"c": c, "z": z, "h": h, "weight": torch.ones(count)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str):
    """Each kind starts at zero, and after two steps every weight has a finite gradient that is not zero."""
    network = make(kind)
    given = inputs()
    given["params"] = given["params"] - 100
    main, levels = network(given["params"], given["image"])
    assert main.shape == (4, 4) and levels.shape == (4, 4) and not main.any() and not levels.any()
    vae = tiny_vae()
    objective = ConditionerObjective(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        objective({**given, **targets(vae)})["loss"].backward()
        optimizer.step()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert float(p.grad.abs().sum()) > 0, name


def test_linear_start_is_least_squares():
    """Latents that are linear in the parameters are met exactly before any training."""
    generator = torch.Generator().manual_seed(0)
    params = torch.rand(40, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e3, 1e-3])
    z = (params @ torch.tensor([[1.0], [2e-3], [5e2]], dtype=torch.float64) + 7.0).float().expand(40, 4)
    h = (3.0 * z).reshape(40, 2, 2)
    network = make("csv")
    network.fit_params(params)
    network.fit_latents(z, h)
    network.fit_linear(params, z, h)
    found = network.latents(params, None)
    torch.testing.assert_close(found[0], z, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[1], h.flatten(1), rtol=1e-4, atol=1e-3)


def test_unscaling_inverts_scaling():
    """Latents z-scored and un-scaled are the same latents."""
    network = make("csv")
    generator = torch.Generator().manual_seed(0)
    z, h = torch.randn(9, 4, generator=generator) * 5 + 2, torch.randn(9, 4, generator=generator) - 3
    network.fit_latents(z, h)
    back = network.unscaled(*network.standardised(z, h))
    torch.testing.assert_close(back, (z, h))
    scored = torch.cat(network.standardised(z, h), 1)
    torch.testing.assert_close(scored.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.std(0, correction=0), torch.ones(8))


def test_single_parameter_is_not_erased():
    """One parameter, and one that never changes, still tell the samples apart."""
    network = make("csv", num_params=2)
    params = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    network.fit_params(params)
    shake(network)
    main, _ = network(params, None)
    assert float((main[0] - main[1]).abs().min()) > 0
    moved = params.clone()
    moved[:, 1] = 9.0
    torch.testing.assert_close(network(moved, None)[0], main, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["csv", "fusion"])
def test_reconstruction_reaches_the_first_layer(kind: str):
    """The gradient of the reconstruction alone at the first layer equals finite differences."""
    vae = tiny_vae().eval().requires_grad_(False)
    network = make(kind, fusion_encoder="vit").eval()
    shake(network, 0.2)
    batch = {**inputs(2), **targets(tiny_vae(), 2)}
    batch["params"] = batch["params"] - 100
    objective = EndToEndObjective(network, vae, Reconstruction("Huber", 0.1), 1.0, 0.0)
    parts = objective(batch)
    assert set(parts) == {"loss", "recon"}
    layers = [network.trunk[0].weight] + ([network.picture.patches.weight] if kind == "fusion" else [])
    grads = torch.autograd.grad(parts["loss"], layers)
    for layer, grad in zip(layers, grads, strict=True):
        place = tuple(int(i) for i in (grad.abs() == grad.abs().max()).nonzero()[0])
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                layer[place] += sign * 1e-3
                values.append(float(objective(batch)["loss"]))
                layer[place] -= sign * 1e-3
        numeric = (values[0] - values[1]) / 2e-3
        assert abs(numeric) > 0 and float(grad[place]) == pytest.approx(numeric, rel=0.02)


def test_fusion_uses_both():
    """With fusion, changing the picture alone or the numbers alone changes the latents."""
    network = make("fusion").eval()
    shake(network)
    given = inputs(2)
    base = network(given["params"], given["image"])[0]
    other_image = network(given["params"], 1 - given["image"])[0]
    other_params = network(given["params"] + 1, given["image"])[0]
    assert float((base - other_image).abs().max()) > 1e-6
    assert float((base - other_params).abs().max()) > 1e-6


def test_place_matters():
    """A spot at another place gives other features: the CNN does not pool place away."""
    network = make("image").eval()
    shake(network)
    pictures = torch.zeros(2, 1, 256, 256)
    pictures[0, :, 32:96, 32:96] = 1
    pictures[1, :, 160:224, 160:224] = 1
    features = network.picture(pictures)
    assert float((features[0] - features[1]).norm() / features[0].norm()) > 1e-3
    coordinates = with_coordinates(pictures)
    assert coordinates.shape == (2, 3, 256, 256) and float(coordinates[0, 1, 0, 0]) == -1


def test_stochastic_depth():
    """Whole samples are dropped in training, with the mean kept; at inference nothing happens."""
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    dropped = drop(x)
    assert {round(v, 5) for v in dropped.unique().tolist()} == {0.0, round(4 / 3, 5)}
    assert (dropped.flatten(1).std(dim=1) == 0).all()
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_threshold():
    """--image_threshold makes grey pictures black and white before the network sees them."""
    network = make("image", image_threshold=128.0).eval()
    shake(network)
    grey = torch.full((1, 1, 256, 256), 0.6)
    assert torch.equal(network(None, grey)[0], network(None, torch.ones_like(grey))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str):
    """A conditioner built from its stored shape and weights gives the same latents."""
    network = make(kind)
    shake(network)
    again = build_conditioner(network.shape.state(), network.state_dict())
    given = inputs(1)
    expected = network.eval().latents(given["params"], given["image"])
    torch.testing.assert_close(again.latents(given["params"], given["image"]), expected, rtol=0, atol=0)


def test_refused_shapes():
    """An unknown kind and numbers without parameters are refused."""
    with pytest.raises(ValueError, match="--input_type sound"):
        make("sound")
    with pytest.raises(ValueError, match="0 parameters"):
        make("csv", num_params=0)
