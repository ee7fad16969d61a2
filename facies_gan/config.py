"""What can be set in a training: one frozen dataclass, one help text a field; presets are in `presets.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from common.run import TrainOptions
from facies_gan.canvas import MODES
from facies_gan.grid_files import require_useful_flags

PACKAGE = "facies_gan"
DEFAULT_WELL_WEIGHT = 10.0
INTERPOLATORS = ("area", "nearest", "neural")


@dataclass(frozen=True)
class TrainingOptions:
    """A training of the pyramid."""

    input_path: Path = option(Path("data"), "data root with facies/, wells/, seismic/", aliases=("data",))
    training_image: Path | None = option(None, "one GSLIB, SGeMS or PNG grid instead of a data root")
    hard_data: Path | None = option(None, "wells of the training image: GEO-EAS, CSV or NPZ")
    min_size: int = option(12, "short side of the coarsest scale", unit="px")
    max_size: int = option(1024, "long side of the finest scale, capped at native", unit="px")
    crop_size: int = option(256, "window of the scales whose grid is larger", unit="px of the scale")
    start_scale: int = option(0, "first scale trained; earlier ones come from the resumed model")
    stop_scale: int = option(6, "index of the finest scale")
    num_scales: int | None = option(None, "number of scales; sets stop_scale to one less")
    square: bool = option(False, "resample the sections to squares")
    num_iter: int = option(2000, "generator-critic iterations of a group of scales")
    batch_size: int = option(1, "sections a process and iteration")
    coarse_iter_factor: float = option(2.0, "iterations of the first group, over num_iter")
    num_train_pyramids: int = option(
        200, "sections used, a seeded choice; 0 = all", aliases=("num_train_facies",)
    )
    num_parallel_scales: int = option(2, "consecutive scales trained jointly as a group")
    num_feature: int = option(32, "features of the coarsest scale")
    min_num_feature: int = option(32, "fewest features of a scale")
    feature_growth: int = option(4, "scales after which the features double; 0 = never")
    num_layer: int = option(5, "convolutions of a network")
    kernel_size: int = option(3, "of the convolutions, odd", unit="px")
    stride: int = option(1, "of the convolutions", choices=(1,))
    padding_size: int = option(0, "zeros around the input of every convolution", unit="px")
    padding_mode: str = option(
        "auto", "what lies outside the grid; auto = noise for one image, zeros for a folder",
        choices=("auto", *MODES),
    )  # fmt: skip
    noise_channels: int = option(3, "channels of noise")
    num_img_channels: int = option(3, "channels of the PNG files", choices=(1, 3, 4))
    img_color_range: tuple[float, ...] = option((0.0, 255.0), "values of black and of full brightness")
    noise_amp: float = option(0.1, "noise over the error of plain upsampling")
    min_noise_amp: float = option(0.1, "least noise of a scale")
    scale0_noise_amp: float = option(1.0, "noise of the coarsest scale")
    generator_steps: int = option(3, "generator updates an iteration")
    discriminator_steps: int = option(3, "critic updates an iteration")
    lr_g: float = option(5e-4, "learning rate of the generators")
    lr_d: float = option(5e-4, "learning rate of the critics")
    beta1: float = option(0.5, "first decay of Adam")
    gamma: float = option(0.9, "factor of the learning rates, every lr_decay iterations")
    lr_decay: int = option(1000, "iterations of a group after which the rates fall")
    lr_schedule: str = option(
        "step", "step: gamma every lr_decay; linear: constant for 80 % of a group, then down to a tenth",
        choices=("step", "linear"),
    )  # fmt: skip
    lambda_grad: float = option(0.1, "weight of the gradient penalty")
    gp_interval: int = option(4, "critic updates between penalties, each weighted by as many")
    alpha: float = option(10.0, "weight of the reconstruction")
    well_loss_penalty: float | None = option(
        None, f"weight of the data; none = {DEFAULT_WELL_WEIGHT:g}; a fifth of it where cells hold many data"
    )
    beta: float | None = option(None, "old name of well_loss_penalty, used when that is absent")
    lambda_diversity: float = option(1.0, "weight of the diversity of a section's draws")
    num_diversity_samples: int = option(3, "noise draws a section and iteration")
    lambda_proportion: float = option(5.0, "weight of the facies proportions")
    lambda_variogram: float = option(0.0, "weight of the contrast and of the variograms to 8 cells")
    lambda_connectivity: float = option(0.0, "weight of how much of each facies hangs together")
    interpolator: str = option("area", "how sections reach coarser scales", choices=INTERPOLATORS)
    use_wells: bool = option(True, "condition on wells: random ones, and those of the files")
    use_seismic: bool = option(False, "condition on seismic")
    max_random_wells: int = option(8, "most random wells of a sample")
    max_random_points: int = option(64, "most random points of a sample")
    no_well_prob: float = option(0.3, "share of samples without data")
    wells_mask_columns: tuple[int, ...] = option((), "pixel columns always used as wells")
    num_real_facies: int = option(5, "anchor sections: rebuilt from fixed noise, shown in previews")
    num_generated_per_real: int = option(5, "realisations of each anchor in previews")
    plot_facies: bool = option(True, "draw previews")
    cache_dir: Path = option(Path(".cache"), "folder of the caches; deleting it is safe")
    clear_cache: bool = option(False, "build all pyramids again", aliases=("regen_npy_gz",))
    slice_axis: str = option("y", "axis across the sections of a 3-D grid", choices=("x", "y", "z"))
    origin: tuple[float, ...] = option((1.0, 1.0, 1.0), "lower face of the first cell, x y z")
    cell_size: tuple[float, ...] = option((1.0, 1.0, 1.0), "of a cell, x y z")
    z_down: bool = option(False, "the vertical coordinate counts from the top")
    grid_dims: tuple[int, ...] = option((), "NX NY NZ of a GSLIB file that begins with a title")
    variable: str = option("", "column of a grid file with several; none = the only one")
    well_background: tuple[int, ...] = option((), "R G B of cells without data in wells images")
    augment_flip: bool = option(False, "mirror sections left to right at random")
    fine_tune: bool = option(False, "with --resume PATH: take its weights only, train on new data")
    group_iter_factor: tuple[float, ...] = option((), "further factors of num_iter, group by group")
    group_batch_size: tuple[int, ...] = option((), "batch_size group by group; the last one goes on")
    group_diversity_samples: tuple[int, ...] = option((), "num_diversity_samples group by group")
    group_crop_size: tuple[int, ...] = option((), "crop_size group by group", unit="px of the scale")
    group_lambda_diversity: tuple[float, ...] = option((), "lambda_diversity group by group")
    group_lambda_variogram: tuple[float, ...] = option((), "lambda_variogram group by group")
    group_lambda_connectivity: tuple[float, ...] = option((), "lambda_connectivity group by group")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if self.num_scales is not None:
            object.__setattr__(self, "stop_scale", self.num_scales - 1)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if self.min_size > self.max_size:
            least = _LEAST["min_size"]
            raise ValueError(
                f"--min_size {self.min_size} is above --max_size {self.max_size}; use --min_size {least}"
            )
        if self.start_scale > self.stop_scale:
            raise ValueError(
                f"--start_scale {self.start_scale} is above --stop_scale {self.stop_scale}; lower it"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"--kernel_size {self.kernel_size}: expected an odd number, as 3")
        if self.padding_size > (self.kernel_size - 1) // 2:
            raise ValueError(
                f"--padding_size {self.padding_size}: expected 0 to {(self.kernel_size - 1) // 2} with "
                f"--kernel_size {self.kernel_size}"
            )
        self._check_critic()
        if not 0 <= self.no_well_prob <= 1:
            raise ValueError(f"--no_well_prob {self.no_well_prob}: expected 0 to 1")
        if not (0 <= self.beta1 < 1 and 0 < self.gamma <= 1):
            raise ValueError(f"--beta1 {self.beta1} --gamma {self.gamma}: expected 0 to 1")
        for name, count in (("origin", 3), ("cell_size", 3), ("img_color_range", 2)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected {count}")
        for name, count in (("grid_dims", 3), ("well_background", 3)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected {count}")
        if self.img_color_range[0] >= self.img_color_range[1]:
            raise ValueError(
                f"--img_color_range {self.img_color_range}: expected black below full brightness"
            )
        require_useful_flags(self)
        for name, least in _GROUP_LEAST.items():
            if any(value < least for value in getattr(self, name)):
                raise ValueError(f"--{name}: expected {least:g} or more for every group")

    def _check_critic(self) -> None:
        field = 2 * self.num_layer * ((self.kernel_size - 1) // 2 - self.padding_size) + 1
        sides = {"min_size": (self.min_size,), "crop_size": (self.crop_size,)}
        for name, values in {**sides, "group_crop_size": self.group_crop_size}.items():
            if values and min(values) < field:
                raise ValueError(
                    f"--{name} {min(values)}: the critic sees {field} cells at once; use "
                    f"--{name} {max(field + 1, 12)}, fewer layers or a smaller kernel"
                )

    @property
    def well_weight(self) -> float:
        """The weight of the data, under either of its names."""
        given = (self.well_loss_penalty, self.beta)
        return next((value for value in given if value is not None), DEFAULT_WELL_WEIGHT)


TrainningOptions = TrainingOptions  # the spelling of an older tool

_LEAST = {
    "min_size": 12, "max_size": 12, "crop_size": 12, "start_scale": 0, "stop_scale": 0, "num_iter": 1,
    "batch_size": 1, "coarse_iter_factor": 0.01, "num_train_pyramids": 0, "num_parallel_scales": 1,
    "num_feature": 1, "min_num_feature": 1, "feature_growth": 0, "num_layer": 2, "kernel_size": 1,
    "padding_size": 0, "noise_channels": 1, "noise_amp": 0.0, "min_noise_amp": 0.0, "scale0_noise_amp": 0.0,
    "generator_steps": 1, "discriminator_steps": 1, "lr_g": 0.0, "lr_d": 0.0, "lr_decay": 1,
    "lambda_grad": 0.0, "gp_interval": 1, "alpha": 0.0, "lambda_diversity": 0.0, "num_diversity_samples": 1,
    "lambda_proportion": 0.0, "lambda_variogram": 0.0, "lambda_connectivity": 0.0,
    "max_random_wells": 0, "max_random_points": 0, "num_real_facies": 1, "num_generated_per_real": 1,
}  # fmt: skip

_GROUP_LEAST = {
    "group_iter_factor": 0.01, "group_batch_size": 1, "group_diversity_samples": 1, "group_crop_size": 12,
    "group_lambda_diversity": 0.0, "group_lambda_variogram": 0.0, "group_lambda_connectivity": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class RunOptions(TrainOptions):
    """How a training runs."""

    out: Path = option(Path("results/facies_gan/train"), "folder of the run", aliases=("output_path",))
    timestamp: bool = option(False, "write into a folder below --out named after the time")
    seed: int = option(0, "of everything random", aliases=("manual_seed",))
    num_workers: int = option(4, "jobs that build pyramids; the results do not depend on it")
    save_every: int = option(
        100, "iterations between checkpoints", unit="iterations", aliases=("save_interval",)
    )
    gpu_device: int = option(-1, "number of the GPU; another device is taken when there is none; -1 = any")
    use_cpu: bool = option(False, "run on the CPU, as --device cpu")
