"""Training and inference on Modal: an app with a volume, the same `train` and `infer` inside.

Nothing else needs Modal. The volume `speed-structure-vol` is mounted at /vol and holds train, test, models,
results and logs. It is committed after training and inference, and while a training saves checkpoints by the
commits that Modal makes in the background; a call that was pre-empted continues from the newest checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError, missing_library
from common.run import MachineOptions, TrainOptions
from velocity_inversion import train as training
from velocity_inversion.analysis import analyze
from velocity_inversion.config import TRAIN_PRESETS, TrainConfig
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.infer import infer
from velocity_inversion.sources import open_source

APP = "velocity-inversion"
VOLUME = "speed-structure-vol"
MOUNT = "/vol"
GPU = "A100"
MEMORY_MB = 64 * 1024
HOUR_S = 3600
PACKAGES = ("common", "velocity_inversion")
FUNCTIONS = ("analyze_data", "train", "resume_training", "generate_submission")


def preset_for(preset: str, root: str) -> TrainConfig:
    """Return a named training on the data below `root`.

    Raises:
        UserError: no such preset.
    """
    if preset not in TRAIN_PRESETS:
        raise UserError(f"--preset {preset}: expected one of {', '.join(TRAIN_PRESETS)}")
    place = Path(root)
    return replace(TRAIN_PRESETS[preset](), train_data_path=str(place / "train"), cache_dir=place / "cache")


def run_training(config: TrainConfig, options: TrainOptions, root: str) -> str:
    """Train below `root`/results/train, continue what is there, and return how it ended."""
    out = Path(root) / "results/train"
    resume = options.resume or ("auto" if (out / "split.json").exists() else "")
    try:
        result = training.train(config, replace(options, out=out, resume=resume))
    finally:
        _commit()
    return result.state if result else "described"


def run_submission(options: MachineOptions, root: str, **changes: Any) -> str:
    """Predict the test samples below `root` and write results/submission.npz; return the path."""
    target = Path(root) / "results/submission.npz"
    config = InferConfig(
        model_path=str(Path(root) / "results/train" / training.MODEL_FILE),
        test_data_path=str(Path(root) / "test"),
        use_tta=True,
        misfit="none",
    )
    infer(replace(config, **changes), options, target)
    _commit()
    return str(target)


def analyze_data(root: str = MOUNT) -> str:
    """Look at all training samples; return the folder of the report."""
    out = Path(root) / "results/analysis"
    analyze(open_source(Path(root) / "train"), out)
    _commit()
    return str(out)


def train(preset: str = "modal", root: str = MOUNT) -> str:
    """Train a preset; a run that is already there is continued, as after a pre-empted call."""
    return run_training(preset_for(preset, root), TrainOptions(), root)


def require_training(root: str) -> None:
    """Check that there is a training to continue.

    Raises:
        UserError: there is none.
    """
    if not (Path(root) / "results/train/split.json").exists():
        raise UserError(f"{root}/results/train: no training to continue; call train first")


def resume_training(preset: str = "modal", root: str = MOUNT) -> str:
    """Continue a training from its newest checkpoint.

    Raises:
        UserError: there is none.
    """
    require_training(root)
    return train(preset, root)


def generate_submission(root: str = MOUNT) -> str:
    """Predict the test samples with the trained ensemble, write results/submission.npz; return the path."""
    return run_submission(MachineOptions(), root)


def _commit() -> None:
    """Make what was written to the volume last; nothing to do outside Modal."""
    try:
        import modal  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    if not modal.is_local():
        modal.Volume.from_name(VOLUME).commit()


def make_app() -> Any:
    """Return the Modal app; its functions are those above, by name in `app.registered_functions`.

    Raises:
        UserError: Modal is not installed.
    """
    try:
        import modal  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_library("modal", "running on Modal") from error
    root = Path(__file__).resolve().parents[1]
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .pip_install_from_requirements(str(root / "requirements.txt"))
        .add_local_python_source(*PACKAGES)
    )
    app = modal.App(APP, image=image)
    volumes = {MOUNT: modal.Volume.from_name(VOLUME, create_if_missing=True)}
    small: dict[str, Any] = {"volumes": volumes, "timeout": HOUR_S}
    large: dict[str, Any] = {**small, "gpu": GPU, "memory": MEMORY_MB}
    app.function(**small)(analyze_data)
    app.function(**{**large, "timeout": 24 * HOUR_S}, retries=3)(train)
    app.function(**{**large, "timeout": 24 * HOUR_S}, retries=3)(resume_training)
    app.function(**large)(generate_submission)
    return app
