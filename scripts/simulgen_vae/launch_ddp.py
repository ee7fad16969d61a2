"""Run train.py on several processes of this machine; flags that are not named here go to train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli import main, parse
from common.run import BasicOptions, TrainOptions
from simulgen_vae.config_files import resolve
from simulgen_vae.launch import LaunchConfig, launch, split_arguments


def run(argv: Sequence[str]) -> int:
    """Split the flags, check both parts, start torchrun, return its exit code."""
    own, rest = split_arguments(argv)
    parsed = parse(own, LaunchConfig, BasicOptions, description=__doc__)
    resolve(rest, TrainOptions)  # one message now instead of one from every process
    return launch(parsed.config, rest, Path(__file__).with_name("train.py"))


if __name__ == "__main__":
    main(run)
