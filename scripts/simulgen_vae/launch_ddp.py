"""Run train.py on several processes of this machine; flags that are not named here go to train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli import main, parse
from common.run import BasicOptions
from simulgen_vae.config import TrainRunOptions
from simulgen_vae.config_files import resolve
from simulgen_vae.launch import LaunchConfig, launch, split_arguments
from simulgen_vae.progress import CONDITIONER
from simulgen_vae.train import gather


def run(argv: Sequence[str]) -> int:
    """Split the flags, check both parts and the inputs, start torchrun, return the training's exit code."""
    own, rest = split_arguments(argv)
    parsed = parse(own, LaunchConfig, BasicOptions, description=__doc__)
    training = resolve(rest, TrainRunOptions)  # one message now instead of one from every process
    if not training.run.dry_run:
        gather(training.config, training.run).data.close()
    folder = training.run.out / CONDITIONER if training.config.lc_only else training.run.out
    return launch(parsed.config, rest, Path(__file__).with_name("train.py"), folder)


if __name__ == "__main__":
    main(run)
