"""Condition files of a training."""

from __future__ import annotations

from simulgen_vae.config import TrainConfig
from simulgen_vae.config_files import CONDITION_KEYS


def write_condition(config: TrainConfig) -> str:
    """Return the text of a condition file that says what `config` says, for every key there is."""
    lines = ["# key value"]
    for key, name in CONDITION_KEYS.items():
        value = getattr(config, name)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if text:
            lines.append(f"{key} {text}")
    return "\n".join(lines) + "\n"
