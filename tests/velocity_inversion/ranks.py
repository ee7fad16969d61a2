"""Train and predict on the ranks of one torchrun job. Usage: torchrun ... ranks.py DATA OUT."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.cli import main
from tests.velocity_inversion.cases import CPU, RUN, rank_config, rank_inference
from velocity_inversion.infer import infer
from velocity_inversion.train import train


def run(argv: Sequence[str]) -> None:
    """Train with one sample a rank and step, then predict the test samples."""
    data, out = (Path(word) for word in argv)
    train(rank_config(data, out / "cache", batch_size=1), replace(RUN, out=out / "run"))
    infer(rank_inference(data, out), CPU, out / "predicted")


if __name__ == "__main__":
    main(run, sys.argv[1:])
