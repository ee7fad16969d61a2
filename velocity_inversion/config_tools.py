"""What the scripts that use a trained ensemble can do: one frozen dataclass a script."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.cli import option, split_commas
from velocity_inversion.misfit import MISFITS
from velocity_inversion.refine import MODES, OPTIMIZERS

REDUCTIONS = ("weighted", "mean", "median")
BASELINES = ("mean", "depth_trend", "inversionnet")
BENCHES = ("", "refine", "overfit")
EXPORT_FORMATS = ("safetensors", "onnx", "torch_export")
DEFAULT_MODEL = "results/velocity/models/best_ensemble_model.pth"
MODEL_HELP = "trained ensemble: its file, or the folder of its training"


@dataclass(frozen=True)
class InferConfig:
    """From gathers to sections."""

    model_path: str = option(DEFAULT_MODEL, MODEL_HELP, aliases=("model",))
    test_data_path: str = option("", "folder of either layout, or one sample's folder")
    batch_size: int = option(8, "samples at once")
    use_tta: bool = option(False, "= --tta_flip --tta_noise 2")
    tta_flip: bool = option(False, "mean with the flipped sample")
    tta_noise: int = option(0, "noisy copies averaged")
    tta_noise_level: float = option(0.01, "their noise, as a share of the gathers' RMS")
    ensemble_reduce: str = option("weighted", "how members combine", choices=REDUCTIONS)
    post_process: bool = option(False, "smooth and clip")
    smooth_sigma: float = option(0.5, "of the smoothing", unit="cells")
    use_diffusion: bool = option(False, "sample sections with the diffusion stage after the ensemble")
    diffusion_path: str = option("", "its file; none = diffusion.pth beside the ensemble")
    num_posterior: int = option(8, "sections drawn of each sample")
    sampler_steps: int = option(8, "steps of the sampler")
    well_log: str = option("", "CSV of x_m,z_m,vp_km_s: velocities known in wells, for the diffusion stage")
    background: str = option("", ".npy of a smooth section in the data's axes and unit, for that stage")
    refine: int = option(0, "iterations of waveform inversion after the network")
    refine_mode: str = option("fwi", "of the refinement", choices=MODES)
    grid_m: float = option(0.0, "cell of simulations; 0 = the layout's", unit="m")
    misfit: str = option("auto", "waveform misfit of: auto (up to 50), all, none, or a number of samples")
    uncertainty: bool = option(True, "write standard deviations and half-widths")
    coverage: float = option(0.9, "of the half-widths; other than the calibrated one is scaled as Gaussian")
    submission: str = option("auto", "write submission.npz", choices=("auto", "true", "false"))
    expected_count: int = option(0, "samples that a submission must hold; 0 = any")
    segy: bool = option(False, "write vp.sgy of each sample")
    hdf5: bool = option(False, "write predictions.h5")
    profiles_x_m: tuple[float, ...] = option((), "write depth profiles with error bars here", unit="m")
    figures: int = option(4, "samples drawn")
    quick_test: bool = option(
        False, "one sample only: the first of the path, or a generated one without a path"
    )

    def __post_init__(self) -> None:
        """Check numbers."""
        if (self.well_log or self.background) and not self.use_diffusion:
            raise ValueError(
                "--well_log, --background: only the diffusion stage uses them; add --use_diffusion"
            )
        if min(self.num_posterior, self.sampler_steps) < 1:
            raise ValueError("--num_posterior, --sampler_steps: expected 1 or more")
        if not (self.misfit in ("auto", "all", "none") or self.misfit.isdecimal()):
            raise ValueError(f"--misfit {self.misfit}: expected auto, all, none or a number")
        if not 0 < self.coverage < 1:
            raise ValueError(f"--coverage {self.coverage}: expected between 0 and 1")
        if self.batch_size < 1 or min(self.refine, self.tta_noise) < 0:
            raise ValueError("--batch_size, --refine, --tta_noise: expected 0 or more")
        if not (self.test_data_path or self.quick_test):
            raise ValueError("--test_data_path: expected a folder of gathers")


@dataclass(frozen=True)
class EvaluateConfig:
    """An ensemble beside its baselines."""

    model_path: str = option(DEFAULT_MODEL, MODEL_HELP, aliases=("model",))
    baseline_model: tuple[str, ...] = option((), "further trained models, say InversionNet's")
    test_data_path: str = option("data/velocity_inversion/test", "held-out samples with truth")
    train_data_path: str = option("data/velocity_inversion/train", "samples that the ridge is fitted on")
    val_data_path: str = option("", "validation samples of --equal_time; none = a split of the training data")
    baselines: tuple[str, ...] = option(("mean", "depth_trend"), f"of {', '.join(BASELINES)}")
    equal_time: float = option(
        0.0,
        "train ours and InversionNet from scratch for so long each, then compare; 0 = off, 300 for --bench "
        "overfit",
        unit="CPU s",
    )
    diffusion_samples: int = option(
        0, "samples on which the diffusion stage is judged, with and without a well"
    )
    robustness: bool = option(False, "MAE under noise, dead traces, a lost shot, other wavelets and gains")
    bench: str = option(
        "",
        "measure one thing alone: refine (from smoothed truth) or overfit (eight samples by heart)",
        choices=BENCHES,
    )
    misfit_samples: int = option(4, "samples whose gathers every method has to explain")
    refine: int = option(0, "waveform iterations on some samples")
    refine_samples: int = option(10, "how many")
    figures: int = option(3, "samples drawn")

    def __post_init__(self) -> None:
        """Check counts and names."""
        object.__setattr__(self, "baselines", split_commas(self.baselines))
        counts = (
            self.refine,
            self.refine_samples,
            self.figures,
            self.equal_time,
            self.diffusion_samples,
            self.misfit_samples,
        )
        if min(counts) < 0:
            raise ValueError(
                "--refine, --refine_samples, --figures, --equal_time, --diffusion_samples, --misfit_samples: "
                "expected 0 or more"
            )
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ValueError(f"--baselines {' '.join(unknown)}: expected of {', '.join(BASELINES)}")
        if "inversionnet" in self.baselines and not (self.equal_time or self.baseline_model):
            raise ValueError(
                "--baselines inversionnet: must be trained; add --equal_time CPU_S or --baseline_model PATH"
            )


def bench_evaluation() -> EvaluateConfig:
    """Return the comparison of the measured tables: both networks trained for 600 CPU seconds."""
    return EvaluateConfig(equal_time=600, baselines=BASELINES)


EVALUATE_PRESETS = {"bench": bench_evaluation}


@dataclass(frozen=True)
class RefineConfig:
    """Physics refinement of sections that were predicted before."""

    prediction_path: str = option("", "folder that infer.py wrote, or its .npz")
    test_data_path: str = option("", "the gathers that they were predicted from")
    model_path: str = option("", "ensemble; the mode data_space needs it", aliases=("model",))
    mode: str = option("fwi", "how", choices=MODES)
    iterations: int = option(40, "of each mode")
    optimizer: str = option("lbfgs", "of the waveform inversion", choices=OPTIMIZERS)
    step_km_s: float = option(0.0, "its first step; 0 = 0.05 for lbfgs, 0.15 for adam", unit="km/s")
    relaxation: float = option(0.5, "lambda of the data-space iteration", aliases=("lambda",))
    tv: float = option(1e-3, "weight of the total variation, relative to the misfit")
    multiscale_hz: str = option(
        "auto",
        "low-pass corners one after another; 0 = full band; auto = 3,5,0, for lbfgs the last of them with "
        "10 iterations each",
    )
    smooth_cells: float = option(
        -1.0, "smoothing of changes in the first band, over depth; -1 = 1 for lbfgs, 3 for adam", unit="cells"
    )
    near_misfit: float = option(
        -1.0, "below this misfit of the start: the last band alone; 0 = never; -1 = never, for adam 0.3"
    )
    misfit_kind: str = option(
        "auto", "objective; auto = l2 for lbfgs, l1 for adam", choices=("auto", *MISFITS)
    )
    grid_m: float = option(0.0, "cell of simulations; 0 = the layout's", unit="m")
    gradient_interval: int = option(4, "time steps between samples kept for the gradient")
    max_samples: int = option(0, "refine only the first so many; 0 = all")
    figures: int = option(4, "samples drawn")

    def __post_init__(self) -> None:
        """Check numbers and paths."""
        if not self.prediction_path or not self.test_data_path:
            raise ValueError(
                "--prediction_path and --test_data_path: missing; expected sections and their gathers"
            )
        if self.mode != "fwi" and not self.model_path:
            raise ValueError(f"--mode {self.mode}: needs the network; add --model_path")
        if min(self.iterations, self.max_samples, self.figures) < 0 or self.gradient_interval < 1:
            raise ValueError(
                "--iterations, --max_samples, --figures, --gradient_interval: expected 0 or more"
            )
        for name in ("smooth_cells", "near_misfit"):
            value = getattr(self, name)
            if not (0 <= value < math.inf or value == -1):
                raise ValueError(f"--{name} {value}: expected 0 or more, or -1 = what is usual")
        if not 0 <= self.step_km_s < math.inf:
            raise ValueError(f"--step_km_s {self.step_km_s}: expected more than 0, or 0 = what is usual")
        _ = self.bands_hz

    @property
    def bands_hz(self) -> tuple[float, ...] | None:
        """The corners as numbers; None = the optimizer's."""
        if self.multiscale_hz == "auto":
            return None
        try:
            corners = tuple(float(word) for word in split_commas((self.multiscale_hz,)))
        except ValueError:
            corners = ()
        if not corners or min(corners) < 0:
            raise ValueError(f"--multiscale_hz {self.multiscale_hz}: expected corners in Hz, as 3,5,0")
        return corners


@dataclass(frozen=True)
class ExportConfig:
    """A trained ensemble for other programs."""

    model_path: str = option(DEFAULT_MODEL, MODEL_HELP, aliases=("model",))
    output: str = option("", "file to write; none = beside the model", aliases=("out",))
    format: str = option("safetensors", "of the file", aliases=("to",), choices=EXPORT_FORMATS)
