"""What a training can be told: one frozen dataclass, one help text a field; presets are functions to edit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import option, split_commas

STAGES = ("network", "diffusion", "all")
VARIANTS = ("base", "wide", "deep", "inversionnet")
MODELS = ("ensemble", "inversionnet")
LEARNING_RATES = {"muon": 4e-3, "adamw": 2e-3}
OPTIMIZERS = ("auto", *LEARNING_RATES)
_DIFFUSION = ("diffusion_steps", "diffusion_width")


@dataclass(frozen=True)
class TrainConfig:
    """A training of the ensemble or of the baseline."""

    train_data_path: str = option(
        "data/velocity_inversion/train", "folder of either layout", aliases=("data",)
    )
    val_data_path: str = option("", "validation folder; none = a split of the training data")
    val_fraction: float = option(0.1, "share of samples for validation without --val_data_path")
    model: str = option("ensemble", "the ensemble, or the baseline network alone", choices=MODELS)
    stage: str = option(
        "network", "train the ensemble, the diffusion stage after it, or both", choices=STAGES
    )
    model_path: str = option("", "ensemble of --stage diffusion; none = that of --out")
    diffusion_steps: int = option(5000, "optimizer steps of the diffusion stage")
    diffusion_lr: float = option(2e-4, "its learning rate")
    diffusion_width: int = option(32, "channels of its first level")
    batch_size: int = option(8, "samples a process and batch")
    optimizer: str = option(
        "auto",
        "adamw; muon: orthogonal updates of matrices; auto: muon, but not InversionNet",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(
        0.0, "largest learning rate; 0 = 4e-3 with muon, 2e-3 with adamw", aliases=("lr",)
    )
    accumulate: int = option(1, "batches a step, one after another", aliases=("accum_steps",))
    num_epochs: int = option(100, "passes over the training data, a member", aliases=("epochs",))
    max_steps: int = option(0, "optimizer steps a member; 0 = by epochs", aliases=("steps",))
    max_cpu_s: float = option(0.0, "CPU time a member; 0 = no limit", unit="s")
    num_models: int = option(5, "members, trained one after another")
    member: int = option(-1, "train only this member (cluster arrays); -1 = all")
    assemble: bool = option(False, "only fit the weights of members that are trained")
    member_variants: tuple[str, ...] = option(("base",), f"cycled over members, of {', '.join(VARIANTS)}")
    embed_dim: int = option(128, "width of tokens")
    num_heads: int = option(4, "attention heads")
    num_layers: int = option(2, "transformer layers of each stack")
    stem: int = option(32, "channels of the first convolution")
    dropout: float = option(0.0, "of transformer layers")
    activation: str = option("sigmoid", "of the velocity", choices=("sigmoid", "softplus"))
    v_min: float = option(1.5, "lowest velocity", unit="km/s")
    v_max: float = option(4.5, "highest velocity", unit="km/s")
    w_mape: float = option(1.0, "weight of mean |v - t| / t")
    w_l2: float = option(0.5, "weight of mean (v - t)^2")
    w_grad: float = option(0.3, "weight of differences between cells")
    w_physics: float = option(0.2, "weight of the wave equation")
    w_scale: float = option(0.05, "weight of the error scale's likelihood")
    depth_weight: float = option(0.0, "by how much weights of MAPE and L2 fall from top to bottom")
    physics_every: int = option(10, "steps between waveform terms; 0 = never", unit="steps")
    physics_shots: int = option(1, "shots of a waveform term")
    physics_samples: int = option(2, "samples of a waveform term, in each batch")
    physics_start: float = option(0.3, "fraction of the training before the first waveform term")
    physics_grid_m: float = option(0.0, "cell of its simulation; 0 = the layout's", unit="m")
    schedule: str = option("cosine", "of the learning rate", choices=("cosine", "warm_restarts"))
    warmup_fraction: float = option(0.03, "of all steps")
    t0_epochs: int = option(10, "first period of warm restarts", unit="epochs")
    t_mult: int = option(2, "each period is so much longer")
    final_lr: float = option(0.01, "learning rate at the end, as a share of the largest")
    weight_decay: float = option(0.01, "AdamW; none on norms, biases, embeddings")
    grad_clip: float = option(1.0, "largest gradient norm; 0 = off", aliases=("gradient_clip_val",))
    ema_decay: float = option(
        0.999, "averaged weights, which are the ones evaluated and kept; 0 = off", aliases=("ema",)
    )
    augment: bool = option(True, "flip with probability 0.5, and the changes below")
    augment_probability: float = option(0.3, "of each change of time, frequency and amplitude")
    augment_scaling: bool = option(
        False,
        "also multiply velocities by 0.95 to 1.05 and divide times by it; needs --physics_every 0",
    )
    family_balanced: bool = option(True, "draw families equally often")
    cache_data: bool = option(True, "keep decimated gathers in a cache")
    cache_dir: Path = option(Path(".cache/velocity_inversion"), "where")
    net_dt_s: float = option(0.004, "interval that the network sees", unit="s")
    bandpass_low_hz: float = option(0.0, "low corner of a zero-phase band-pass; 0 = open", unit="Hz")
    bandpass_high_hz: float = option(0.0, "high corner; 0 = open", unit="Hz")
    gradient_checkpointing: bool = option(False, "recompute the encoder's stages in the backward pass")
    use_amp: bool = option(False, "fp16 on a GPU, bf16 on a CPU")
    mean_start: bool = option(True, "start from the mean depth profile of the training data")

    def __post_init__(self) -> None:
        """Check what one value alone, or two together, can be wrong about."""
        object.__setattr__(self, "member_variants", split_commas(self.member_variants))
        for name in (
            "batch_size",
            "accumulate",
            "num_epochs",
            "num_models",
            "embed_dim",
            "num_heads",
            "num_layers",
            "stem",
            *_DIFFUSION,
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if not 0 < self.v_min < self.v_max:
            raise ValueError(f"--v_min {self.v_min} --v_max {self.v_max}: expected 0 < v_min < v_max")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"--num_heads {self.num_heads}: expected a divisor of --embed_dim")
        unknown = sorted(set(self.member_variants) - set(VARIANTS))
        if unknown or not self.member_variants:
            raise ValueError(f"--member_variants {' '.join(unknown)}: expected of {', '.join(VARIANTS)}")
        if self.diffusion_lr <= 0 or self.diffusion_width % 8:
            raise ValueError("--diffusion_lr, --diffusion_width: expected more than 0, and a multiple of 8")
        if self.stage != "network" and self.model == "inversionnet":
            raise ValueError(f"--stage {self.stage}: follows the ensemble, not --model inversionnet")
        if self.augment_scaling and not (self.augment and self.augment_probability):
            raise ValueError("--augment_scaling: needs --augment and --augment_probability above 0")
        if self.learning_rate < 0:
            raise ValueError(f"--learning_rate {self.learning_rate}: expected 0 or more")
        if self.augment_scaling and self.physics_every:
            raise ValueError("--augment_scaling: gathers no longer fit the wavelet; add --physics_every 0")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val_fraction {self.val_fraction}: expected between 0 and 1")

    def rule(self) -> tuple[str, float]:
        """Return the optimizer's name and its largest learning rate."""
        name = self.optimizer
        if name == "auto":
            name = "adamw" if self.model == "inversionnet" else "muon"
        return name, self.learning_rate or LEARNING_RATES[name]

    def variant(self, member: int) -> TrainConfig:
        """Return the configuration of one member: the base one, wider, deeper, or the baseline network."""
        name = self.member_variants[member % len(self.member_variants)]
        if self.model == "inversionnet" or name == "inversionnet":
            return replace(self, model="inversionnet")
        if name == "wide":
            return replace(self, embed_dim=self.embed_dim * 3 // 2, stem=self.stem * 3 // 2)
        return replace(self, num_layers=self.num_layers + 2) if name == "deep" else self


def smoke() -> TrainConfig:
    """Return a training of three steps, for tests."""
    return TrainConfig(
        embed_dim=32, num_layers=1, stem=8, num_models=1, max_steps=3, batch_size=2, physics_every=0
    )


def demo() -> TrainConfig:
    """Return the demo's training: one member of 40 CPU seconds."""
    return TrainConfig(num_models=1, max_cpu_s=40, warmup_fraction=0.06, ema_decay=0.98, physics_every=0)


def bench() -> TrainConfig:
    """Return the training of the measured tables: one member of 600 CPU seconds."""
    return TrainConfig(num_models=1, max_cpu_s=600, warmup_fraction=0.06, ema_decay=0.98, physics_every=0)


def challenge() -> TrainConfig:
    """Return the training for the 300 x 1259 m sections: no waveform term."""
    return TrainConfig(physics_every=0, ema_decay=0.99)


def modal() -> TrainConfig:
    """Return the training on a rented GPU."""
    return TrainConfig(
        embed_dim=512,
        num_heads=8,
        num_layers=12,
        batch_size=4,
        optimizer="adamw",
        learning_rate=1e-4,
        num_epochs=50,
        num_models=3,
        physics_every=0,
    )


def paper() -> TrainConfig:
    """Return the large training: twelve layers of width 512."""
    return TrainConfig(
        embed_dim=512, num_heads=8, num_layers=12, dropout=0.1, optimizer="adamw", learning_rate=1e-4
    )


TRAIN_PRESETS = {
    "smoke": smoke,
    "demo": demo,
    "bench": bench,
    "base": TrainConfig,
    "challenge": challenge,
    "modal": modal,
    "paper": paper,
}
