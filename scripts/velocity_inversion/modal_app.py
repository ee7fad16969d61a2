"""Train and predict on Modal: `modal run scripts/velocity_inversion/modal_app.py::train --preset modal`.

The functions are analyze_data, train, resume_training and generate_submission. Run with Python and --local
the same functions work on this machine, on a folder laid out as the volume is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import main, option, parse
from common.run import BasicOptions, MachineOptions, TrainOptions
from velocity_inversion import cloud


@dataclass(frozen=True)
class Config:
    """What to do."""

    function: str = option("train", "what to call", choices=cloud.FUNCTIONS)
    preset: str = option("modal", "training preset of train and resume_training")
    root: Path = option(Path("."), "folder with train, test, results, as on the volume")
    max_steps: int = option(0, "optimizer steps a member; 0 = as the preset says")
    device: str = option("auto", "of a call on this machine")


@dataclass(frozen=True)
class Options(BasicOptions):
    """How to call."""

    local: bool = option(False, "call on this machine")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and call one function on this machine, or check that Modal could."""
    parsed = parse(argv, Config, Options, description=__doc__)
    if not parsed.run.local:
        print(f"{cloud.make_app().name}: {', '.join(cloud.FUNCTIONS)}; start them with modal run")
        return
    config, root, dry = parsed.config, str(parsed.config.root), parsed.run.dry_run
    if config.function == "analyze_data":
        print(cloud.analyze_data(root))
    elif config.function == "generate_submission":
        print(cloud.run_submission(MachineOptions(device=config.device, dry_run=dry), root))
    else:
        if config.function == "resume_training":
            cloud.require_training(root)
        training = cloud.preset_for(config.preset, root)
        training = replace(training, max_steps=config.max_steps or training.max_steps)
        options = TrainOptions(device=config.device, dry_run=dry, overwrite=parsed.run.overwrite)
        print(cloud.run_training(training, options, root))


if __name__ != "__main__" and importlib.util.find_spec("modal"):  # imported by `modal run`
    app = cloud.make_app()

if __name__ == "__main__":
    main(run)
