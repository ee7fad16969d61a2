"""One sample from gathers to section, to see that model, data and machine work together."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from common.device import resolve_device
from common.log import get_logger
from common.run import MachineOptions, machine
from velocity_inversion.after import Prediction, draw_prediction
from velocity_inversion.config import TrainConfig
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Calibration, Ensemble, load_ensemble
from velocity_inversion.geometry import Survey, openfwi_survey
from velocity_inversion.infer import predict, require_fit
from velocity_inversion.member import Member, fit_statistics, preprocessing_of
from velocity_inversion.simulate import default_simulation, simulate, to_survey_rate
from velocity_inversion.sources import Source, open_source
from velocity_inversion.synthetic import make_section


class GeneratedSource(Source):
    """One curved section and its gathers, made in memory."""

    def __init__(self, survey: Survey, seed: int = 0) -> None:
        self.survey = survey
        section = make_section(survey.model_shape_zx, "curved", seed, "quick", 0, survey.v_bounds_km_s)
        self.ids, self.families, self.has_truth = ["quick_test"], [section.family], True
        self._vp = section.vp

    @cached_property
    def _gathers(self) -> np.ndarray:
        simulation = default_simulation(self.survey)
        with torch.no_grad():
            traces = simulate(torch.from_numpy(self._vp)[None], simulation)[0].numpy()
        return to_survey_rate(traces, simulation).astype(np.float32)

    def read_gathers(self, index: int, *, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the gathers; all traces are live."""
        live = np.ones((self.survey.num_shots, self.survey.num_receivers), dtype=bool)
        return self._gathers, live

    def velocity(self, index: int) -> np.ndarray:
        """Return the section."""
        return self._vp

    def gather_files(self) -> list[Path]:
        """Return no files."""
        return []


def untrained(survey: Survey, config: TrainConfig | None = None) -> Ensemble:
    """Return an ensemble of one network without training: it answers the mean of one generated section."""
    config = config or TrainConfig(num_models=1)
    preprocessing = preprocessing_of(config)
    statistics = fit_statistics(ShotDataset(GeneratedSource(survey, seed=1), preprocessing), survey)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        member = Member(config, survey)
    member.start_from(statistics)
    return Ensemble(
        Path("untrained"),
        (config,),
        survey,
        torch.ones(1),
        (member.state_dict(),),
        Calibration(),
        statistics.mean_section,
    )


def quick_test_prediction(
    model_path: str | Path = "",
    test_data_path: str | Path = "",
    *,
    config: InferConfig | None = None,
    device: str = "cpu",
    out: Path | None = None,
    seed: int = 0,
) -> Prediction:
    """Predict one sample, print shapes, time and misfit, draw it; return the prediction.

    Args:
        model_path: a trained ensemble; "" = a network without training.
        test_data_path: its first sample is taken; "" = one is generated.
        config: how to predict.
        device: where.
        out: folder of the figures; None draws none.
        seed: of everything random.

    Raises:
        DataError: model or data cannot be used.
    """
    place = resolve_device(device)
    survey = openfwi_survey()
    if model_path:
        ensemble = load_ensemble(model_path)
        survey = ensemble.survey
    else:
        get_logger().warning("no model: a network without training answers; train one with train.py")
    source = open_source(test_data_path) if test_data_path else GeneratedSource(survey, seed)
    if not model_path:
        ensemble = untrained(source.survey)
    config = replace(config or InferConfig(quick_test=True), misfit="all")
    require_fit(ensemble, source, config)
    dataset = ShotDataset(source, ensemble.preprocessing, rows=[0])
    one = next(iter(predict(ensemble, dataset, place, config, seed=seed)))
    gathers, _ = source.read_gathers(0)
    get_logger().info(
        f"{one.id}: gathers {list(gathers.shape)} [shot, time, receiver] -> section {list(one.vp.shape)} "
        f"[z, x], {one.vp.min():.2f} to {one.vp.max():.2f} km/s, in {one.seconds:.2f} s; "
        f"waveform misfit {one.misfit:.3f}, mean half-width {1000 * one.half_width.mean():.0f} m/s"
    )
    if out is not None:
        truth = source.velocity(0) if source.has_truth else None
        draw_prediction(out / "figures", one, truth, dataset, 0, ensemble, config)
        get_logger().info(f"figures in {out / 'figures'}")
    return one


def quick_test(config: InferConfig, options: MachineOptions, out: Path) -> Prediction:
    """Run `quick_test_prediction` as the flags say; a default model that is not there is done without.

    Raises:
        DataError: a model that was asked for, or the data, cannot be used.
    """
    with machine(options):
        default = config.model_path == InferConfig.model_path
        model = "" if default and not Path(config.model_path).exists() else config.model_path
        return quick_test_prediction(
            model,
            config.test_data_path,
            config=config,
            device=options.device,
            out=None if options.dry_run else out,
            seed=options.seed,
        )
