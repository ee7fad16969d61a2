"""What a training can be told: one frozen dataclass, one help text a field; presets are functions to edit.

A physical residual of your own is a function here: set `residual`, and weigh it with --residual_weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import option
from common.run import TrainOptions
from simulgen_vae.layers import SIZES
from simulgen_vae.losses import LOSS_TYPES
from simulgen_vae.schedules import KL_SCHEDULES, LR_SCHEDULES

if TYPE_CHECKING:
    import torch

# residual(u [B, T, M, V] in physical units, params [B, P], time [T]) -> [B], 0 where the physics holds.
residual: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None

CONDITIONERS = ("auto", "net", "gp", "direct", "field_net")
INPUT_TYPES = ("auto", "csv", "image", "image_vit", "fusion")
E2E_LOSSES = ("Huber", "MSE", "MAE", "SmoothL1")
BASELINES = ("rbf", "krr", "gpr", "gpr_shared")


@dataclass(frozen=True)
class TrainConfig:
    """A surrogate of simulations on one fixed mesh with one number of frames, and all that predicts it."""

    data: str = option("", "data set; none = input_data/dataset{k}.*, then ./dataset{k}.*")
    dataset: int = option(1, "number k of the data set, without --data")
    condition_file: str = option("", "settings; none = input_data/condition.txt where it is present")
    preset_file: str = option("", "settings; none = input_data/preset{k}.txt or preset.txt where present")
    plot: int = option(
        2, "0 save figures and show windows, 1 save figures, 2 none during training", choices=(0, 1, 2)
    )
    lc_only: bool = option(False, "train only the conditioner, on the VAE of --vae")
    vae: str = option("", "trained VAE for --lc_only; none = <out>/model_save/SimulGen-VAE")
    size: str = option("small", "of the residual blocks", choices=SIZES)
    load_all: bool = option(False, "keep all coefficients on the device")
    cache: str = option("auto", "where coefficients stay", choices=("auto", "gpu", "ram", "disk"))
    use_ddp: bool = option(False, "several processes; needs torchrun")
    epochs: int = option(400, "of the VAE", aliases=("num_epochs",))
    lc_epochs: int = option(600, "of the conditioner")
    batch_size: int = option(16, "samples a process and step, VAE")
    lc_batch_size: int = option(16, "samples a process and step, conditioner")
    lr: float = option(1e-3, "learning rate of the VAE")
    lc_lr: float = option(1e-3, "learning rate of the conditioner")
    weight_decay: float = option(1e-2, "of AdamW on matrices, VAE")
    lc_weight_decay: float = option(1e-4, "of AdamW on matrices, conditioner")
    latent_dim_end: int = option(32, "size of the main latent")
    latent_dim: int = option(8, "size of each hierarchical latent")
    filters: tuple[int, ...] = option((128, 96, 64, 48), "filters of the encoder's stages")
    lc_filters: tuple[int, ...] = option((128, 128, 128), "widths of the conditioner")
    front_end: str = option("pod", "spatial POD, or none: the mesh itself", choices=("pod", "none"))
    num_modes: str = option("auto", "spatial modes; auto = by --energy, at most 512")
    energy: float = option(1 - 1e-6, "share of the variance that the spatial modes keep")
    loss_type: int = option(1, "1 MSE, 2 MAE, 3 SmoothL1, 4 Huber", choices=tuple(LOSS_TYPES))
    alpha: float = option(1e6, "reconstruction weight")
    sample_weighting: str = option(
        "relative", "weight of a sample: none, or by its norm", choices=("none", "relative")
    )
    kl_schedule: str = option("linear", "ramp of the KL weight", choices=KL_SCHEDULES)
    init_beta: float = option(1e-3, "KL weight before the ramp")
    kl_start: float = option(0.3, "begin of the ramp", unit="fraction of the epochs")
    kl_end: float = option(0.8, "end of the ramp", unit="fraction of the epochs")
    lr_schedule: str = option("cosine", "learning rate after the warm-up", choices=LR_SCHEDULES)
    warmup_fraction: float = option(0.05, "linear warm-up", unit="fraction of the steps")
    eta_min: float = option(1e-6, "learning rate of the last step")
    lr_t0: int = option(1000, "first cycle of warm_restarts", unit="epochs")
    lr_t_mult: int = option(2, "growth of the cycles of warm_restarts")
    gradient_clip_val: float = option(1.0, "total gradient norm; 0 = off", aliases=("grad_clip",))
    ema: float = option(0.999, "decay of the averaged weights; 0 = off", aliases=("ema_decay",))
    free_bits: float = option(0.0, "KL that costs nothing", unit="nats a dimension")
    spectral_norm: bool = option(True, "normalise the hidden layers of encoder and decoder")
    checkpointing: bool = option(
        False,
        "recompute residual blocks in the backward pass: less memory",
        aliases=("gradient_checkpointing",),
    )
    train_linear: bool = option(False, "train the linear part too")
    compile_mode: str = option("default", "of --compile, for example max-autotune")
    input_type: str = option("auto", "what the conditioner sees", choices=INPUT_TYPES)
    fusion_encoder: str = option("cnn", "of the picture with fusion", choices=("cnn", "vit"))
    conditioner: str = option("auto", "predictors to train; the guard chooses", choices=CONDITIONERS)
    field_net: str = option("auto", "train the grid network", choices=("auto", "on", "off"))
    max_cpu_s: float = option(600.0, "CPU time for the predictors of --conditioner auto", unit="s")
    ensemble: int = option(1, "conditioners whose mean predicts and whose spread enters the error bars")
    param_dir: str = option("", "folder of pictures, or CSV file or folder, when not in the data set")
    param_data_type: str = option("", "suffix of the files in --param_dir, for example .png")
    num_param: int = option(0, "number of parameters, checked; 0 = from the file")
    dropout: float = option(0.1, "of the conditioner")
    use_attention: bool = option(True, "channel and spatial attention of the CNN")
    image_threshold: float = option(-1.0, "binarise pictures at this grey value 0-255; negative = off")
    use_e2e_training: bool = option(False, "train the conditioner through the decoder at the end")
    e2e_epochs: int = option(100, "of the end-to-end phase")
    e2e_train_decoder: bool = option(False, "let the end-to-end phase change the decoder")
    e2e_loss_function: str = option("Huber", "of the end-to-end phase", choices=E2E_LOSSES)
    lc_alpha: float = option(1.0, "reconstruction weight of the end-to-end phase")
    use_latent_regularization: bool = option(True, "keep to the latents in the end-to-end phase")
    latent_reg_weight: float = option(0.001, "weight of that")
    e2e_vae_model_path: str = option("", "trained VAE for the end-to-end phase and --lc_only")
    joint_conditioner: bool = option(False, "train the conditioner beside the VAE, on detached targets")
    augment: bool = option(
        False, "augment: switches --aug_noise 0.01 and --aug_mixup 0.2 on where they are 0"
    )
    aug_noise: float = option(
        0.0, "noise on the encoder's input, the target stays clean", unit="standard deviations of a mode"
    )
    aug_mixup: float = option(0.0, "Beta parameter of mixing training samples, VAE only; 0 = off")
    symmetry: str = option("auto", "auto (declared in the data), none, or an npz file")
    recon_iter: int = option(
        1, "posterior draws in evaluation: their mean and spread", aliases=("Recon_iter",)
    )
    dim1: int = option(0, "samples that the data must have; 0 = any")
    dim2: int = option(0, "frames that the data must have; 0 = any")
    dim3: int = option(0, "nodes that the data must have; 0 = any")
    dim2_red: int = option(0, "frames kept; 0 = all")
    dim3_start: int = option(0, "first node kept")
    dim3_end: int = option(0, "one past the last node kept; 0 = all")
    num_var: int = option(1, "fields on the node axis of a 3-D array")
    var_order: str = option("block", "how they lie there", choices=("block", "interleaved"))
    drop_bad: bool = option(False, "drop samples with NaN or infinite values")
    val_fraction: float = option(0.1, "of the samples, for validation")
    test_fraction: float = option(0.2, "of the samples, for the test")
    split_file: str = option("", "stored split (JSON) to use")
    group: str = option("", "CSV or npy with one group a sample; none = the data set's own")
    bounds: str = option("", "bounds on the field: LO,HI:soft or LO,HI:hard")
    nonnegative: str = option("off", "field at or above 0", choices=("off", "soft", "hard"))
    dirichlet: str = option("", "npz with mask and value of known nodes, FILE:soft or FILE:hard")
    balance: str = option("off", "conservation law to keep", choices=("off", "advdiff", "wave"))
    residual_weight: float = option(0.0, "weight of the residual set in config.py")
    guard: bool = option(True, "let the best predictor on held-out data ship")
    baselines: str = option(",".join(BASELINES), "regressions on POD to print beside the models")
    coverage: float = option(0.9, "of the error bars")
    coverage_over: str = option(
        "auto",
        "points: that share of them in the mean; trajectories: that share of the points of that share of "
        "trajectories (wider); auto: points from 19 calibration runs on",
        choices=("auto", "points", "trajectories"),
    )
    patience: int = option(0, "end a phase after this many evaluations without gain; 0 = never")
    max_memory: float = option(2.0, "bound on the memory of data preparation", unit="GiB")

    def __post_init__(self) -> None:
        """Check what does not need the data."""
        self._check_counts()
        self._check_ranges()
        if len(self.filters) < 2:
            raise ValueError(f"--filters {' '.join(map(str, self.filters))}: expected two or more stages")
        if self.num_modes != "auto" and not (self.num_modes.isdecimal() and int(self.num_modes) > 0):
            raise ValueError(f"--num_modes {self.num_modes}: expected auto or a number above 0")
        unknown = set(self.baseline_names) - set(BASELINES)
        if unknown:
            raise ValueError(f"--baselines {self.baselines}: expected some of {','.join(BASELINES)}")

    def _check_counts(self) -> None:
        least_one = ("batch_size", "lc_batch_size", "latent_dim_end", "latent_dim", "lr_t0", "lr_t_mult")
        for name in (*least_one, "recon_iter", "num_var", "dataset", "ensemble", "epochs"):
            least = 0 if name == "epochs" else 1
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        for name in ("filters", "lc_filters"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected numbers above 0")
        names = ("lc_epochs", "e2e_epochs", "num_param", "dim1", "dim2", "dim3", "dim2_red", "dim3_start")
        for name in (*names, "dim3_end", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more")

    def _check_ranges(self) -> None:
        for name in ("lr", "lc_lr", "alpha", "init_beta", "max_memory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected more than 0")
        for name in ("weight_decay", "lc_weight_decay", "aug_noise", "aug_mixup", "free_bits", "eta_min"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more")
        for name in ("ema", "dropout", "warmup_fraction", "val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more and below 1")
        if not 0 <= self.kl_start < self.kl_end <= 1:
            raise ValueError(
                f"--kl_start {self.kl_start} --kl_end {self.kl_end}: expected 0 <= start < end <= 1"
            )
        if not 0 < self.energy <= 1 or not 0 < self.coverage < 1:
            raise ValueError(
                f"--energy {self.energy} --coverage {self.coverage}: expected in 0..1, the coverage below 1"
            )
        if self.joint_conditioner and self.mixup:
            raise ValueError("--joint_conditioner --aug_mixup: mixed fields have no inputs; leave one out")
        if self.mixup and (self.balance != "off" or self.residual_weight > 0):
            raise ValueError("--balance --residual_weight: mixed fields keep no law; leave --aug_mixup out")
        if self.image_threshold > 255:
            raise ValueError(f"--image_threshold {self.image_threshold}: expected 0 to 255, negative = off")

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines asked for."""
        return tuple(name for name in self.baselines.replace(" ", "").split(",") if name)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on the encoder's input."""
        return self.aug_noise or (0.01 if self.augment else 0.0)

    @property
    def mixup(self) -> float:
        """Beta parameter of the mixing of samples."""
        return self.aug_mixup or (0.2 if self.augment else 0.0)

    @property
    def vae_path(self) -> str:
        """The trained VAE that was named, "" for the run's own."""
        return self.vae or self.e2e_vae_model_path


@dataclass(frozen=True)
class TrainRunOptions(TrainOptions):
    """Where the run goes."""

    out: Path = option(Path("results/simulgen_vae/train"), "folder of the run")
    keep_last: int = option(2, "numbered checkpoints kept")
    num_workers: int = option(
        0, "loader processes; 0 = none where coefficients lie in memory or runs are few, else up to 6"
    )


def default() -> TrainConfig:
    """Return the defaults."""
    return TrainConfig()


def lsh() -> TrainConfig:
    """Return the settings of LSH-VAE's authors; the numbers of a preset.txt win."""
    return TrainConfig(
        filters=(1024, 512, 256, 128),
        lc_filters=(4, 8, 16, 32, 64),
        lr_schedule="warm_restarts",
    )


def small_data() -> TrainConfig:
    """Return a training for fewer than 200 simulations."""
    return TrainConfig(epochs=200)


def large_mesh() -> TrainConfig:
    """Return a training for meshes of 50 000 nodes and more."""
    return TrainConfig(num_modes="512", filters=(512, 256, 128, 64))


def static() -> TrainConfig:
    """Return a training for one frame a simulation."""
    return TrainConfig(filters=(128, 64), epochs=600)


def image_vit() -> TrainConfig:
    """Return a training whose conditioner sees pictures through a transformer."""
    return TrainConfig(input_type="image_vit")


def paper() -> TrainConfig:
    """Return the length of training of Lee et al., Engineering with Computers 2024 (LSH-VAE)."""
    return TrainConfig(epochs=5000, filters=(1024, 512, 256, 128), lr_schedule="warm_restarts")


def smoke() -> TrainConfig:
    """Return a run of seconds, for tests."""
    return TrainConfig(
        epochs=2,
        lc_epochs=2,
        e2e_epochs=1,
        filters=(8, 6),
        lc_filters=(8,),
        latent_dim_end=4,
        latent_dim=2,
        num_modes="6",
        ema=0.9,
        batch_size=4,
        lc_batch_size=4,
    )


def demo_wave() -> TrainConfig:
    """Return the training of the demo on the acoustic wave: numbers say all."""
    return TrainConfig(
        epochs=20, lc_epochs=30, filters=(64, 48, 32, 24), ema=0.99, max_cpu_s=10.0, input_type="csv"
    )


def demo_advdiff() -> TrainConfig:
    """Return the training of the demo on heat through a layer: picture and numbers together."""
    return TrainConfig(
        epochs=20, lc_epochs=12, filters=(64, 48, 32, 24), ema=0.99, max_cpu_s=10.0, fusion_encoder="vit"
    )


TRAIN_PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "default": default,
    "lsh": lsh,
    "small_data": small_data,
    "large_mesh": large_mesh,
    "static": static,
    "image_vit": image_vit,
    "paper": paper,
    "smoke": smoke,
    "demo_wave": demo_wave,
    "demo_advdiff": demo_advdiff,
}


def _numbered(k: int, preset: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
    """Return `preset` for data set k: the digits of --preset choose both."""
    return lambda: replace(preset(), dataset=k)


for _k, _preset in enumerate((lsh, small_data, large_mesh, static, image_vit), 1):
    TRAIN_PRESETS[str(_k)] = _numbered(_k, _preset)
