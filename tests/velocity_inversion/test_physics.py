"""The simulator against analytic answers and symmetries; refinement; the survey's file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from velocity_inversion.geometry import Survey, challenge_survey, openfwi_survey, read_survey
from velocity_inversion.refine import RefineSettings, refine
from velocity_inversion.simulate import coarsen, default_simulation, simulate
from velocity_inversion.synthetic import make_section

SHORT = replace(openfwi_survey(2, 5), num_samples=400)


def shot(vp: torch.Tensor, survey: Survey) -> torch.Tensor:
    """Return gathers [S, T, R] of one section."""
    with torch.no_grad():
        return simulate(vp[None], default_simulation(survey))[0]


def section(index: int, family: str = "curved") -> torch.Tensor:
    """Return a section [70, 70], km/s."""
    return torch.from_numpy(make_section((70, 70), family, 0, "test", index).vp)


def test_geometry_round_trip(tmp_path: Path):
    """Both built-in surveys come back from their file; an empty one is refused."""
    path = tmp_path / "geometry.json"
    for survey in (openfwi_survey(), challenge_survey()):
        path.write_text(json.dumps(survey.to_dict()))
        assert read_survey(path) == survey
    assert openfwi_survey().sources[:, 0].tolist() == [0, 170, 340, 520, 690]
    path.write_text("{}")
    with pytest.raises(DataError, match="strata-shots-1"):
        read_survey(path)


def test_direct_wave_arrives_on_time():
    """In a homogeneous model the peak moves by offset / v."""
    traces = shot(torch.full((70, 70), 2.0), SHORT)[0]
    delay = float(traces[:, 2].abs().argmax() - traces[:, 1].abs().argmax())
    distance = SHORT.receivers[0, 2, 0] - SHORT.receivers[0, 1, 0]
    assert abs(delay - distance / 2.0) <= 2


def test_reciprocity():
    """Swapping one source and one receiver in one layer leaves the trace unchanged."""
    a, b = (100.0, 10.0), (500.0, 10.0)
    there = replace(SHORT, source_xz=(a,), receiver_xz=((b,),))
    back = replace(SHORT, source_xz=(b,), receiver_xz=((a,),))
    vp = section(3, "layered")
    one, other = (shot(vp, survey)[0, :, 0] for survey in (there, back))
    assert float((one - other).norm() / one.norm()) < 1e-3


def test_mirrored_model_gives_mirrored_gathers():
    """Mirroring model and geometry mirrors the gathers."""
    vp = section(1)
    plain, mirrored = shot(vp, SHORT), shot(vp.flip(1), SHORT)
    assert float((mirrored.flip(0).flip(-1) - plain).norm() / plain.norm()) < 1e-4


def test_coarse_cells_keep_travel_time():
    """Slowness is averaged, so travel times through whole cells are kept."""
    vp = torch.rand(1, 10, 10) + 2
    torch.testing.assert_close(1 / coarsen(vp, 5), (1 / vp).reshape(1, 2, 5, 2, 5).mean((2, 4)))


def test_refinement_never_raises_the_misfit():
    """The misfit falls from a constant start; no iteration returns the start; wild steps do no harm."""
    truth = section(2)
    start = torch.full((70, 70), float(truth.mean()))
    simulation, observed = default_simulation(SHORT), shot(truth, SHORT)
    still = refine(start, observed, simulation, RefineSettings(iterations=0))
    assert torch.equal(still.vp, start) and still.misfit == still.start_misfit
    assert refine(start, observed, simulation, RefineSettings(iterations=3)).misfit < still.misfit
    wild = refine(start, observed, simulation, RefineSettings(iterations=2, step_km_s=50.0))
    assert wild.misfit <= wild.start_misfit and 1.5 <= float(wild.vp.min()) <= float(wild.vp.max()) <= 4.5
