"""What a training can be told: one frozen dataclass, one help text a field; presets are functions to edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from common.run import TrainOptions
from voxel_ode.convolutions import BACKENDS
from voxel_ode.layers import NORMS

KERNEL_MODES = ("stem", "separable", "dense")
SAMPLE_WEIGHTS = ("uniform", "activity", "well")
MAX_RADIUS = 5
MAX_LEVELS = 3
MAX_SIZE = 8192  # channels or blocks: a damaged checkpoint may ask for any number


@dataclass(frozen=True)
class ModelConfig:
    """The network's architecture; it travels in the checkpoint."""

    receptive_field_radius: int = option(3, "r of the large kernels, 2r+1 cells wide, 0..5", unit="cells")
    base_channels: int = option(128, "width of the network")
    depth: int = option(12, "residual blocks of the trunk")
    kernel_mode: str = option(
        "stem", "large kernels in the stem, depthwise in every block, or dense", choices=KERNEL_MODES
    )
    norm: str = option("channel", "normalisation; channel and running stay exact in tiles", choices=NORMS)
    predict: str = option(
        "delta", "change from the state, or the state itself", choices=("delta", "absolute")
    )
    scalar_head: str = option(
        "physics", "rates from the wells' temperatures, or pooled", choices=("physics", "pooled")
    )
    multiscale: int = option(0, "coarse levels, 0..3")
    film_hidden: int = option(0, "hidden units shared before FiLM; 0 = none")
    flux_inputs: bool = option(True, "feed what the flow does to the temperature")
    activation_checkpointing: bool = option(
        False, "recompute blocks in the backward pass to save memory", aliases=("gradient_checkpointing",)
    )

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not 0 <= self.receptive_field_radius <= MAX_RADIUS:
            raise ValueError(
                f"--receptive_field_radius {self.receptive_field_radius}: expected 0..{MAX_RADIUS}"
            )
        if not 0 <= self.multiscale <= MAX_LEVELS:
            raise ValueError(f"--multiscale {self.multiscale}: expected 0..{MAX_LEVELS}")
        for name, least in (("base_channels", 1), ("depth", 0), ("film_hidden", 0)):
            if not least <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least}..{MAX_SIZE}")


@dataclass(frozen=True)
class TrainConfig(ModelConfig):
    """One training."""

    prepped_root: Path | None = option(None, "folder of prep_data; required", aliases=("data",))
    train_index: Path | None = option(None, "index of the training patches; none = in the root")
    val_index: Path | None = option(None, "index of the validation patches; none = in the root")
    test_index: Path | None = option(None, "index of the test patches; none = in the root")
    batch_size: int = option(16, "patches a process and batch")
    accum_steps: int = option(1, "batches a step, one after another", aliases=("accumulate",))
    lr: float = option(3e-4, "peak learning rate of AdamW")
    weight_decay: float = option(0.01, "of AdamW, on kernels and matrices")
    betas: tuple[float, ...] = option((0.9, 0.999), "of AdamW")
    grad_clip: float = option(1.0, "gradient norm to clip at; 0 = off", aliases=("gradient_clip_val",))
    warmup_steps: int = option(1000, "linear warm-up, at most 10 % of max_steps", unit="steps")
    max_steps: int = option(200_000, "optimizer steps", aliases=("steps",))
    min_lr_ratio: float = option(0.1, "last learning rate over the peak")
    ema_decay: float = option(
        0.999, "of the averaged weights, which are the saved model; 0 = off", aliases=("ema",)
    )
    loss_weights: tuple[float, ...] = option((1.0, 1.0, 1.0), "of pressure, temperature and scalars")
    loss_margin: int = option(4, "no loss nearer to a patch cut that is no edge of the grid", unit="cells")
    unroll_steps: int = option(1, "years predicted in a row at the end of training")
    unroll_start: float = option(0.6, "fraction of the training with one year only")
    unroll_grad_steps: int = option(2, "last states that gradients flow through; 1 = pushforward")
    aug_xy_rot: bool = option(False, "quarter turns in the horizontal plane")
    aug_flip: bool = option(False, "horizontal flips")
    rot_per_sample: bool = option(False, "a turn for each sample instead of one a step")
    noise_std: float = option(0.01, "of the input noise, normalised; a fifth of it on pressure")
    conv_backend: str = option(
        "auto", "how convolutions are computed; auto times them", choices=("auto", *BACKENDS)
    )
    sample_weight: str = option(
        "activity", "patches drawn more often: with more active cells, or with wells", choices=SAMPLE_WEIGHTS
    )
    use_amp: bool = option(False, "mixed precision: fp16 with a scaler on CUDA, else bf16")
    cache: str = option("auto", "keep files in memory", choices=("none", "ram", "auto"))
    max_memory: float = option(0.0, "refuse files declared larger; 0 = a share of the memory", unit="GB")
    rollout_eval_every: int = option(0, "steps between rollouts; 0 = as checkpoints", unit="steps")
    rollout_eval_sims: int = option(2, "validation simulations rolled out; 0 = none")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        super().__post_init__()
        for name, least in (
            ("batch_size", 1),
            ("accum_steps", 1),
            ("max_steps", 1),
            ("warmup_steps", 0),
            ("unroll_steps", 1),
            ("unroll_grad_steps", 1),
            ("loss_margin", 0),
            ("noise_std", 0),
            ("grad_clip", 0),
            ("rollout_eval_every", 0),
            ("rollout_eval_sims", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        for name, count in (("betas", 2), ("loss_weights", 3)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected {count}")
        if self.lr <= 0:
            raise ValueError(f"--lr {self.lr}: expected more than 0")
        for name in ("unroll_start", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected between 0 and 1")
        if self.rot_per_sample and not self.aug_xy_rot:
            raise ValueError("--rot_per_sample: turns nothing without --aug_xy_rot; add it")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay {self.ema_decay}: expected 0 or more, below 1")


@dataclass(frozen=True)
class TrainRunOptions(TrainOptions):
    """How and where to train."""

    out: Path = option(Path("runs/voxel_ode"), "folder of the run")
    save_dir: Path | None = option(None, "of checkpoints; none = ./checkpoints, with --out <out>/checkpoints")
    log_every: int = option(20, "steps between log lines", unit="steps")
    eval_every: int = option(100, "steps between evaluations", unit="steps")
    save_every: int = option(1000, "steps between checkpoints", unit="steps", aliases=("ckpt_every",))
    resume: str = option("", "auto (newest valid checkpoint) or a path", aliases=("resume_from",))
    pin_memory: bool | None = option(None, "page-locked batches; none = on CUDA")
    use_wandb: bool = option(False, "log to Weights & Biases, project WANDB_PROJECT or voxel-ode")
    wandb_run_name: str = option("", "name of the run there")
    nccl_p2p: bool = option(False, "let NCCL copy from GPU to GPU directly")


def full() -> TrainConfig:
    """Return the training of the full data set, on several GPUs."""
    return TrainConfig()


def study() -> TrainConfig:
    """Return a training on 60 simulations of 32x24x24: a GPU, or a night on a CPU."""
    return TrainConfig(
        receptive_field_radius=2,
        base_channels=64,
        depth=8,
        multiscale=2,
        batch_size=8,
        max_steps=20_000,
        unroll_steps=8,
        aug_xy_rot=True,
        aug_flip=True,
    )


def demo() -> TrainConfig:
    """Return the training of `make demo`: whole grids of 32x24x24, some 140 s of processor time.

    With less time the pressure suffers first; with little or no noise rollouts drift.
    """
    return TrainConfig(
        receptive_field_radius=2,
        base_channels=16,
        depth=4,
        multiscale=2,
        batch_size=1,
        lr=2e-3,
        warmup_steps=20,
        max_steps=400,
        ema_decay=0.99,
        unroll_steps=1,
        aug_xy_rot=True,
        aug_flip=True,
    )


def smoke() -> TrainConfig:
    """Return a run of seconds, for tests."""
    return TrainConfig(
        receptive_field_radius=1,
        base_channels=8,
        depth=1,
        multiscale=1,
        batch_size=2,
        lr=2e-3,
        max_steps=6,
        unroll_steps=2,
        rollout_eval_sims=1,
        loss_margin=1,
    )


TRAIN_PRESETS = {"smoke": smoke, "demo": demo, "study": study, "full": full}
