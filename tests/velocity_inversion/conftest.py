"""What several test files share: a tiny data set and an ensemble trained on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.velocity_inversion.cases import RUN, tiny_config, tiny_data
from velocity_inversion.train import train


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny data set."""
    return tiny_data(tmp_path_factory.mktemp("shots"))


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training of two members, and of a diffusion stage, that nobody disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    config = replace(tiny_config(data, folder / "cache"), stage="all")
    result = train(config, replace(RUN, out=folder / "run"))
    assert result is not None and result.state == "finished"
    return folder / "run"
