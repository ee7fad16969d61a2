"""What can be set for the tools around a trained surrogate."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import option
from simulgen_vae.baselines import NAMES

PARTS = ("test", "validation", "train")


@dataclass(frozen=True)
class EvaluateConfig:
    """A trained surrogate beside its baselines on simulations that it has not seen."""

    model: str = option(
        "results/simulgen_vae/train/model_save/SimulGen-VAE",
        "deliverable of a training, or its run folder",
        aliases=("model_path",),
    )
    data: str = option("", "the data set it was trained on; none = as the training named it")
    part: str = option("test", "which part of the split to score", choices=PARTS)
    num: int = option(0, "score at most this many samples; 0 = all")
    baselines: str = option(
        "as_trained", f"regressions on POD to print: some of {','.join(NAMES)}; none, or as_trained"
    )
    coverage: float = option(0.0, "of the error bars; 0 = as calibrated")
    recon_iter: int = option(
        0, "posterior draws of the auto-encoding: their mean is scored, never the best; 0 = as trained"
    )
    figures: bool = option(True, "draw figures")
    field: int = option(0, "number of the field that the figures show")

    def __post_init__(self) -> None:
        """Check what does not need the model."""
        unknown = set(self.baseline_names) - set(NAMES)
        if unknown:
            raise ValueError(f"--baselines {self.baselines}: expected some of {','.join(NAMES)}, or none")
        if min(self.num, self.recon_iter, self.field) < 0:
            raise ValueError(
                f"--num {self.num} --recon_iter {self.recon_iter} --field {self.field}: expected 0 or more"
            )
        if not 0 <= self.coverage < 1:
            raise ValueError(f"--coverage {self.coverage}: expected 0 or a share below 1")

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The names of `--baselines`."""
        names = (name.strip() for name in self.baselines.split(","))
        return tuple(name for name in names if name not in ("", "none", "as_trained"))
