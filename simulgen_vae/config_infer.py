"""What can be set for the tools that use a trained surrogate: inference, export, inversion."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import option

MODEL = "results/simulgen_vae/train"
EXPORTS = ("torch_export", "onnx", "safetensors", "vtk", "npy")
SPACES = ("auto", "params", "latents")


@dataclass(frozen=True)
class ConstraintFlags:
    """Limits that predictions keep; each replaces what the training was told, off switches it off."""

    bounds: str = option(
        "", "none = as trained; off; LO,HI[:hard|soft], or FIELD=LO,HI ..., several joined by ;"
    )
    nonnegative: str = option(
        "", "field at or above 0; none = as trained", choices=("", "off", "soft", "hard")
    )
    dirichlet: str = option(
        "", "npz with mask and value of known nodes, FILE[:hard|soft]; off; none = as trained"
    )


@dataclass(frozen=True)
class InferConfig(ConstraintFlags):
    """Fields for new inputs with their error bars; meshes cannot change between training and inference."""

    model: str = option(MODEL, "deliverable of a training, or its run folder", aliases=("model_path",))
    params: str = option(
        "",
        "CSV file or folder, npy, npz, h5, or numbers: 1.2,0.3 or a=1.2,b=0.3, rows joined by ;",
    )
    images: str = option("", "new pictures: a folder, one picture, or npy uint8 [N, H, W]")
    image_suffix: str = option(".png", "of the pictures in a folder")
    sample: int = option(0, "draw this many trajectories from the prior instead")
    interpolate: str = option("", "I,J: trajectories between two samples of the training data, in latents")
    num_points: int = option(9, "trajectories of --interpolate, both ends included")
    latents: str = option("", "npy [N, latents] to decode instead")
    write_latents: bool = option(False, "write latents.npy [N, latents] of the predictions")
    std: bool = option(True, "write error bars: std, lower, upper")
    on_ood: str = option("warn", "inputs unlike the training's: warn, or refuse", choices=("warn", "refuse"))
    format: str = option("h5", "of the fields: one h5 file, or npy files", choices=("h5", "npy"))
    batch_size: int = option(0, "trajectories at a time; 0 = what --max_memory holds, at most 64")
    max_memory: float = option(1.0, "bound on the memory of a batch", unit="GiB")
    figures: bool = option(True, "draw the first trajectories")
    field: int = option(0, "number of the field that the figures show")

    def __post_init__(self) -> None:
        """Check what does not need the model."""
        asked = [n for n in ("params", "images") if getattr(self, n)]
        others = [n for n in ("sample", "interpolate", "latents") if getattr(self, n)]
        if len(others) > 1 or (others and asked):
            names = " ".join(f"--{n}" for n in (*asked, *others))
            raise ValueError(f"{names}: expected one source of predictions; leave the others out")
        if not asked and not others:
            raise ValueError("--params, --images, --sample, --interpolate or --latents: expected one of them")
        if self.sample < 0 or self.batch_size < 0 or self.field < 0:
            raise ValueError(
                f"--sample {self.sample} --batch_size {self.batch_size} --field {self.field}: "
                "expected 0 or more"
            )
        if self.num_points < 2 or self.max_memory <= 0:
            raise ValueError(
                f"--num_points {self.num_points} --max_memory {self.max_memory}: expected 2 or more, above 0"
            )
        if self.interpolate:
            _ = self.ends

    @property
    def ends(self) -> tuple[int, int]:
        """The two samples of `--interpolate`."""
        parts = self.interpolate.replace(" ", "").split(",")
        if len(parts) != 2 or not all(p.isdecimal() for p in parts):
            raise ValueError(f"--interpolate {self.interpolate}: expected two sample numbers I,J")
        return int(parts[0]), int(parts[1])


@dataclass(frozen=True)
class ExportConfig(ConstraintFlags):
    """One graph from physical inputs to physical fields, or predictions for other programs."""

    model: str = option(MODEL, "deliverable of a training, or its run folder", aliases=("model_path",))
    to: tuple[str, ...] = option(("torch_export",), "formats", aliases=("format",), choices=EXPORTS)
    out: str = option("results/simulgen_vae/export", "folder of the exported files")
    data: str = option("", "the data set it was trained on; none = as the training named it")
    params: str = option("", "inputs of vtk and npy, as infer takes them; none = held-out samples with truth")
    images: str = option("", "pictures of vtk and npy, as infer takes them")
    image_suffix: str = option(".png", "of the pictures in a folder")
    num: int = option(1, "samples written to vtk and npy")
    repeats: int = option(30, "calls that the latency is measured on")

    def __post_init__(self) -> None:
        """Check the counts."""
        if not self.to:
            raise ValueError(f"--to: expected one or more of {', '.join(EXPORTS)}")
        if self.num < 1 or self.repeats < 1:
            raise ValueError(f"--num {self.num} --repeats {self.repeats}: expected 1 or more")


@dataclass(frozen=True)
class InvertConfig(ConstraintFlags):
    """Parameters (or latents) whose predicted field meets a target field or sensor readings."""

    model: str = option(MODEL, "deliverable of a training, or its run folder", aliases=("model_path",))
    data: str = option("", "the data set it was trained on; none = as the training named it")
    target: str = option("", "field to meet: npy or h5 [T, M] or [T, M, V], physical units")
    target_row: int = option(-1, "sample of the data set to meet instead")
    sensors: str = option(
        "", "CSV with the columns node, frame, value, sigma, and field where there are several"
    )
    num_test: int = option(0, "instead: invert this many held-out samples and say how well it goes")
    space: str = option("auto", "what is sought; auto = latents where pictures are an input", choices=SPACES)
    starts: int = option(8, "starts of a Latin hypercube, beside the nearest training sample")
    steps: int = option(300, "of Adam")
    lr: float = option(0.05, "of Adam", unit="standard deviations")
    polish: int = option(10, "Gauss-Newton steps at the end")
    prior_weight: float = option(1.0, "of the training's own spread of inputs; 0 = none")
    sigma: float = option(
        0.0,
        "uncertainty of a target field; 0 = the model's own error",
        unit="standard deviations of the field",
    )
    bounds_file: str = option("", "CSV with the columns name, low, high: a box other than the training range")
    figures: bool = option(True, "draw the result")

    def __post_init__(self) -> None:
        """Check what does not need the model."""
        asked = [self.target != "", self.target_row >= 0, self.sensors != "", self.num_test > 0]
        if sum(asked) != 1:
            raise ValueError("--target, --target_row, --sensors or --num_test: expected exactly one of them")
        if self.starts < 0 or self.steps < 0 or self.polish < 0:
            raise ValueError(
                f"--starts {self.starts} --steps {self.steps} --polish {self.polish}: expected 0 or more"
            )
        if self.lr <= 0 or self.prior_weight < 0 or self.sigma < 0:
            raise ValueError(
                f"--lr {self.lr} --prior_weight {self.prior_weight} --sigma {self.sigma}: expected above 0, "
                "0 or more, 0 or more"
            )
