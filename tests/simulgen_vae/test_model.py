"""The network: exact at the linear start, exact sizes, nothing unused, amplitude kept, small and odd data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from simulgen_vae import spectral
from simulgen_vae.layers import SLICE, num_groups, stage_lengths
from simulgen_vae.model import HierarchicalVae, VaeShape, build_vae, empty_start, parameter_count
from simulgen_vae.objectives import HostArray, Reconstruction, VaeObjective
from tests.simulgen_vae.cases_vae import random_start, shake, tiny_vae


def random_c(vae: HierarchicalVae, count: int = 5, seed: int = 3) -> torch.Tensor:
    """Return coefficients [B, C, T] of unit size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vae.shape.channels, vae.shape.frames, generator=generator)


def projection(vae: HierarchicalVae, c: torch.Tensor) -> torch.Tensor:
    """Return the projection of c on the modes of the linear start, in float64."""
    modes = vae.linear.modes.double().flatten(1)
    mean = vae.linear.mean.double()
    return mean + ((c.double() - mean).flatten(1) @ modes.T @ modes).unflatten(1, mean.shape)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((64, 50), "small"), 761_720),
        (((128, 50), "small"), 778_168),
        (((128, 50), "large"), 2_448_216),
        (((16, 17), "small"), 631_392),
        (((512, 200), "small"), 1_459_016),
    ],
)
def test_parameter_counts(sizes: tuple[tuple[int, int], str], expected: int):
    """The number of parameters is exactly that of the layer tables."""
    (channels, frames), size = sizes
    shape = VaeShape(channels, frames, size=size)
    assert parameter_count(HierarchicalVae(shape, empty_start(shape))) == expected


def test_parameter_counts_of_wide_networks():
    """Wide filters and a whole mesh: counted without forming the weights."""
    for channels, size, expected in (
        (512, "small", 26_941_848),
        (512, "large", 99_393_688),
        (95_008, "small", 220_564_152),
    ):
        shape = VaeShape(channels, 200, (1024, 512, 256, 128), size, spectral_norm=False)
        with torch.device("meta"):
            assert parameter_count(HierarchicalVae(shape, empty_start(shape))) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": "large"},
        {"frames": 1},
        {"channels": 5, "frames": 50},
        {"filters": (8, 6)},
        {"channels": 1, "frames": 1, "filters": (4, 4)},
        {"spectral_norm": False},
    ],
)
def test_start_is_the_projection(changes: dict[str, Any]):
    """At step 0 the reconstruction at the posterior mean is the projection on the POD modes, 1e-5."""
    vae = tiny_vae(**changes)
    c = random_c(vae)
    found = vae.reconstruct(c)
    assert float((found - projection(vae, c)).norm() / c.norm()) < 1e-5
    z, h = vae.latents(c)
    torch.testing.assert_close(vae.decode(z, h), found)


def test_few_training_rows():
    """A linear solution of lower rank than there are latents starts as exactly that projection."""
    shape = VaeShape(6, 9, (8, 6), latent_dim_end=4, latent_dim=2)
    vae = HierarchicalVae(shape, random_start(shape, rank=3))
    c = random_c(vae)
    assert vae.linear.scales.tolist()[3:] == [0.0] * 3
    assert float((vae.reconstruct(c) - projection(vae, c)).norm() / c.norm()) < 1e-5
    assert torch.isfinite(vae(c, torch.zeros(5, 6)).zeta).all()


def test_amplitude():
    """Half of the deviation from the mean added: the reconstructed deviation grows by half at the start."""
    vae = tiny_vae()
    c = random_c(vae)
    base = vae.reconstruct(c) - vae.linear.mean
    grown = vae.reconstruct(c + 0.5 * (c - vae.linear.mean)) - vae.linear.mean
    assert float((grown - 1.5 * base).norm() / base.norm()) < 1e-5


def test_start_variances():
    """The log-variances start at the optimum of the linear VAE, which a search over one latent confirms."""
    vae = tiny_vae(alpha=50.0)
    size = vae.shape.channels * vae.shape.frames
    scales = vae.linear.scales.double()
    grid = torch.linspace(-8, 2, 20001, dtype=torch.float64)
    output = vae(random_c(vae))
    starts = torch.cat([output.logvar[0], output.step[0].flatten()])
    for scale, start in zip(scales, starts, strict=True):
        loss = 50.0 * scale**2 / size * grid.exp() + 0.5 * (grid.exp() - grid)
        assert abs(float(grid[loss.argmin()]) - float(start)) < 1e-3


def test_every_parameter_learns():
    """After two steps every trained weight has a finite gradient that is not zero."""
    vae = tiny_vae(alpha=100.0)
    objective = VaeObjective(vae, Reconstruction(), alpha=100.0)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-2)
    batch = {"c": random_c(vae), "weight": torch.ones(5)}
    for step in range(4):
        noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        objective({**batch, "noise": noise})["loss"].backward()
        optimizer.step()
    for name, p in vae.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert float(p.grad.abs().sum()) > 0, name


def test_every_latent_reaches_the_output():
    """Each of z and of every level changes the output, at the start and later."""
    vae = tiny_vae()
    for moved in (False, True):
        if moved:
            shake(vae)
        z, h = torch.zeros(1, 4), torch.zeros(1, 2, 2)
        base = vae.decode(z, h)
        for i in range(8):
            bump = torch.zeros(1, 8)
            bump[0, i] = 1.0
            changed = vae.decode(z + bump[:, :4], h + bump[:, 4:].reshape(1, 2, 2))
            assert float((changed - base).norm()) > 1e-3 * float(base.norm())


def test_prior_depends_on_what_is_above():
    """The prior of a level depends on z and on the deeper level, and not on its own latent."""
    vae = tiny_vae()
    shake(vae)
    z, h = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 2, 2, requires_grad=True)
    _, levels = vae.decoder(z, h=h)
    grads = torch.autograd.grad(levels.mean[:, 1].sum(), (z, h))
    assert float(grads[0].abs().sum()) > 0
    assert float(grads[1][:, 0].abs().sum()) > 0 and float(grads[1][:, 1].abs().sum()) == 0


def test_folded_spectral_norm():
    """Folding the spectral norms changes no output (1e-6) and leaves plain weights."""
    vae = tiny_vae()
    shake(vae)
    for _ in range(50):
        spectral.iterate(vae)
    c = random_c(vae)
    folded = build_vae(vae.shape.state(), vae.state_dict(), folded=True)
    torch.testing.assert_close(folded.reconstruct(c), vae.eval().reconstruct(c), rtol=1e-6, atol=1e-6)
    assert not any("parametrizations" in name for name in folded.state_dict())
    weight = folded.decoder.first[0].weight
    assert abs(float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) - 1) < 1e-4


def test_spectral_norm_leaves_the_zero_layers():
    """Stem, heads, taps and priors are not normalised; all other matrices are."""
    names = {n.split(".parametrizations")[0] for n, _ in tiny_vae().named_parameters() if "original" in n}
    plain = {
        n[: -len(".weight")]
        for n, p in tiny_vae().named_parameters()
        if n.endswith(".weight") and p.dim() > 1
    }
    assert plain == {
        *("encoder.stem", "encoder.top", "encoder.taps.0", "encoder.taps.1", "decoder.head"),
        *("decoder.levels.0.prior", "decoder.levels.1.prior"),
    }
    assert "decoder.start" in names and "encoder.downs.0" in names


def test_checkpointing_changes_nothing():
    """Recomputed blocks give the same loss and the same gradients."""
    plain = tiny_vae()
    shake(plain)
    recomputed = HierarchicalVae(plain.shape, random_start(plain.shape), checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    grads = []
    for vae in (plain, recomputed):
        vae.train()
        vae(random_c(vae), torch.ones(5, 8)).features.square().sum().backward()
        grads.append([p.grad for p in vae.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1])


def test_slices_equal_the_whole(monkeypatch: pytest.MonkeyPatch):
    """A mesh in slices of channels, from host memory, gives the loss and gradients of the whole."""
    assert SLICE == 8192
    grads = []
    for size in (8192, 4):
        monkeypatch.setattr("simulgen_vae.layers.SLICE", size)
        vae = tiny_vae(channels=11)
        shake(vae)
        c = random_c(vae)
        batch = {"c": HostArray(c), "noise": torch.ones(5, 8), "weight": torch.ones(5)}
        loss = VaeObjective(vae, Reconstruction(), alpha=10.0)(batch)["loss"]
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in vae.parameters())])
    torch.testing.assert_close(grads[0], grads[1], rtol=2e-5, atol=1e-6)


def test_prior_samples_have_unit_latents():
    """A draw of the prior at the start is cbar + W^T diag(s) noise."""
    vae = tiny_vae()
    noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.sample(noise), vae.linear.field(noise))


def test_state_survives_a_round_trip():
    """Weights loaded into a network of the stored shape reconstruct the same field bit for bit."""
    vae = tiny_vae(size="large")
    shake(vae)
    again = build_vae(vae.shape.state(), copy.deepcopy(vae.state_dict()))
    c = random_c(vae)
    assert torch.equal(again.reconstruct(c), vae.eval().reconstruct(c))


def test_lengths_and_groups():
    """Strides halve while 8 frames or more are left; groups divide the channels."""
    assert stage_lengths(50, 4) == [50, 25, 13, 7] and stage_lengths(1, 3) == [1, 1, 1]
    assert [num_groups(c) for c in (1, 16, 48, 100, 512)] == [1, 1, 3, 5, 8]


def test_impossible_sizes():
    """Filters or latents below 1 and single stages are refused."""
    for changes in ({"filters": (8,)}, {"latent_dim": 0}, {"size": "huge"}, {"filters": (8, 0)}):
        with pytest.raises(ValueError, match="expected"):
            tiny_vae(**changes)
