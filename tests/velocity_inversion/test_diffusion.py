"""The diffusion stage: identities, an analytic sampler, resume, sampled inference, bad conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import load as load_checkpoint
from common.errors import DataError, UserError
from tests.velocity_inversion.cases import CPU, RUN, tiny_config
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.denoiser import Denoiser
from velocity_inversion.diffusion import (
    CHANNELS,
    SIGMA_DATA,
    heun,
    loss_weight,
    preconditioning,
    sampling_sigmas,
)
from velocity_inversion.first_stage import read_wells
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.infer import infer, load
from velocity_inversion.refiner import Refiner
from velocity_inversion.sources import open_source
from velocity_inversion.train import MODEL_FILE, train


def test_preconditioning_keeps_unit_variance():
    """Inputs have variance 1, targets of F too, and the weighted loss counts every level alike."""
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0])
    c_skip, c_out, c_in, c_noise = preconditioning(sigma)
    torch.testing.assert_close(c_in.square() * (sigma.square() + SIGMA_DATA**2), torch.ones(5))
    target = (1 - c_skip).square() * SIGMA_DATA**2 + c_skip.square() * sigma.square()
    torch.testing.assert_close(target, c_out.square(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(loss_weight(sigma) * c_out.square(), torch.ones(5))
    torch.testing.assert_close(c_noise.exp(), sigma**0.25)
    levels = sampling_sigmas(8)
    assert float(levels[0]) == pytest.approx(80) and float(levels[7]) == pytest.approx(0.002)
    assert float(levels[8]) == 0 and bool((levels.diff() < 0).all())


def test_heun_samples_a_gaussian():
    """With the exact denoiser of N(m, s^2) the samples have that mean and spread."""
    mean, spread = 0.7, 0.3

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        ratio = spread**2 / (spread**2 + sigma[:, None, None] ** 2)
        return mean + ratio * (x - mean)

    noise = torch.randn(4, 40, 40, generator=torch.Generator().manual_seed(0))
    found = heun(exact, noise, 32)
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(spread, rel=0.03)


@torch.no_grad()
def test_denoiser_sees_all_it_is_given():
    """Sizes that are no multiple of four come back; well, mask, memory and noise level change the answer."""
    torch.manual_seed(0)
    network = Denoiser(CHANNELS, 8, 16).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # some start at zero, so that nothing would be seen
            torch.nn.init.normal_(module.weight, std=0.1)
    x, memory = torch.randn(1, CHANNELS, 14, 10), torch.randn(1, 6, 16)
    level, known = torch.zeros(1), torch.tensor([True])
    plain = network(x, level, memory, known)
    assert plain.shape == (1, 1, 14, 10)
    for channel in (5, 6):
        other = x.clone()
        other[:, channel, :, 3] += 1
        assert float((network(other, level, memory, known) - plain).abs().max()) > 1e-4
    assert float((network(x, level + 0.3, memory, known) - plain).abs().max()) > 1e-4
    assert float((network(x, level, memory + 1, known) - plain).abs().max()) > 1e-6
    hidden = [network(x, level, m, torch.tensor([False])) for m in (memory, memory + 1)]
    assert torch.equal(*hidden)


def test_denoiser_size():
    """The default has at most two million weights."""
    assert sum(p.numel() for p in Denoiser(CHANNELS).parameters()) == 1_602_241


def test_resume_equals_the_uninterrupted_run(data: Path, trained: Path, tmp_path: Path):
    """Cut back to step 2 and continued, the diffusion stage has the same bits."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "m.pth").write_bytes((trained / MODEL_FILE).read_bytes())
    config = tiny_config(data, tmp_path / "cache")
    config = replace(config, stage="diffusion", model_path=str(models / "m.pth"))
    train(config, replace(RUN, out=tmp_path / "run"))
    for path in (tmp_path / "run/diffusion/checkpoints").iterdir():
        if path.name != "step2.pt":
            path.unlink()
    train(config, replace(RUN, out=tmp_path / "run", resume="auto"))
    expected, found = (
        load_checkpoint(run / "diffusion/checkpoints/last.pt").state_dict
        for run in (trained, tmp_path / "run")
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_sampled_inference(data: Path, trained: Path, tmp_path: Path):
    """K samples differ, repeat with the seed, and their mean and spread are what is written."""
    config = InferConfig(
        model_path=str(trained / MODEL_FILE),
        test_data_path=str(data / "test"),
        use_diffusion=True,
        num_posterior=3,
        sampler_steps=2,
        misfit="none",
        figures=0,
    )
    rows = infer(config, CPU, tmp_path / "a")
    infer(config, CPU, tmp_path / "b")
    infer(config, replace(CPU, seed=1), tmp_path / "c")
    name = open_source(data / "test").ids[0]
    a, b, c = (np.load(tmp_path / run / name / "posterior.npy") for run in "abc")
    assert a.shape == (3, 70, 70) and np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.abs(a[0] - a[1]).max() > 1
    np.testing.assert_allclose(np.load(tmp_path / "a" / name / "vp_pred.npy"), a.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        np.load(tmp_path / "a" / name / "vp_std.npy"), a.std(0, ddof=1), rtol=1e-3, atol=0.1
    )
    assert all(row["uncertainty"] == "uncalibrated" for row in rows)


def test_a_stage_of_another_ensemble_is_refused(trained: Path, tmp_path: Path):
    """Missing and foreign files end in one line each."""
    ensemble = load(trained / MODEL_FILE)
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="no diffusion stage"):
        Refiner(tmp_path / "diffusion.pth", ensemble, cpu)
    with pytest.raises(DataError, match="another ensemble"):
        Refiner(trained / "models/diffusion.pth", replace(ensemble, sha256="0"), cpu)
    with pytest.raises(DataError):
        Refiner(trained / MODEL_FILE, ensemble, cpu)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x_m,z_m,vp_km_s\n800,0,2\n", "leave the section"),
        ("x_m,z_m,vp_km_s\n100,0,2000\n", "expected 1.5 to 4.5"),
        ("x_m,vp_km_s\n100,2\n", "x_m,z_m,vp_km_s"),
        ("x_m,z_m,vp_km_s\n100,0,fast\n", "without numbers"),
    ],
)
def test_bad_wells(tmp_path: Path, text: str, message: str):
    """A well outside the section, in m/s, without a column or without numbers is named."""
    (tmp_path / "well.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_wells(tmp_path / "well.csv", openfwi_survey())


def test_wells_are_interpolated_over_depth(tmp_path: Path):
    """Between its first and last row a well is linear; elsewhere nothing is known."""
    (tmp_path / "well.csv").write_text("x_m,z_m,vp_km_s\n100,200,2\n100,400,4\n")
    values, mask = read_wells(tmp_path / "well.csv", openfwi_survey())
    assert mask.sum() == 21 and mask[20:41, 10].all()
    assert values[30, 10] == pytest.approx(3.0)
