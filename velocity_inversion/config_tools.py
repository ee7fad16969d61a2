"""What the scripts that use a trained ensemble can do: one frozen dataclass a script."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import option
from velocity_inversion.refine import MODES

REDUCTIONS = ("weighted", "mean", "median")


@dataclass(frozen=True)
class InferConfig:
    """From gathers to sections."""

    model_path: str = option("results/velocity/models/best_ensemble_model.pth", "trained ensemble")
    test_data_path: str = option("", "folder of either layout, or one sample's folder")
    batch_size: int = option(8, "samples at once")
    use_tta: bool = option(False, "= --tta_flip --tta_noise 2")
    tta_flip: bool = option(False, "mean with the flipped sample")
    tta_noise: int = option(0, "noisy copies averaged")
    tta_noise_level: float = option(0.01, "their noise, as a share of the gathers' RMS")
    ensemble_reduce: str = option("weighted", "how members combine", choices=REDUCTIONS)
    post_process: bool = option(False, "smooth and clip")
    smooth_sigma: float = option(0.5, "of the smoothing", unit="cells")
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

    def __post_init__(self) -> None:
        """Check numbers."""
        if not (self.misfit in ("auto", "all", "none") or self.misfit.isdigit()):
            raise ValueError(f"--misfit {self.misfit}: expected auto, all, none or a number")
        if not 0 < self.coverage < 1:
            raise ValueError(f"--coverage {self.coverage}: expected between 0 and 1")
        if self.batch_size < 1 or min(self.refine, self.tta_noise) < 0:
            raise ValueError("--batch_size, --refine, --tta_noise: expected 0 or more")
        if not self.test_data_path:
            raise ValueError("--test_data_path: expected a folder of gathers")


@dataclass(frozen=True)
class EvaluateConfig:
    """An ensemble beside its baselines."""

    model_path: str = option("results/velocity/models/best_ensemble_model.pth", "trained ensemble")
    baseline_model: tuple[str, ...] = option((), "further trained models, say InversionNet's")
    test_data_path: str = option("data/velocity_inversion/test", "held-out samples with truth")
    train_data_path: str = option("data/velocity_inversion/train", "samples that the ridge is fitted on")
    refine: int = option(0, "waveform iterations on some samples")
    refine_samples: int = option(10, "how many")
    figures: int = option(3, "samples drawn")

    def __post_init__(self) -> None:
        """Check counts."""
        if min(self.refine, self.refine_samples, self.figures) < 0:
            raise ValueError("--refine, --refine_samples, --figures: expected 0 or more")
