"""The text files beside the command line: condition.txt (keys and values) and preset.txt (five lines).

Precedence: command line > --config > condition.txt > preset.txt > named preset > default; the origin of every
value is kept.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common.cli import Parsed, parse, parse_bool
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import TrainOptions
from simulgen_vae.config import TRAIN_PRESETS, TrainConfig
from simulgen_vae.fields import SUFFIXES
from simulgen_vae.paths import LIKENESS, hint

R = TypeVar("R", bound=TrainOptions)
FOLDER = Path("input_data")
CONDITION_KEYS = {
    "Dim1": "dim1",
    "Dim2": "dim2",
    "Dim3": "dim3",
    "Dim2_red": "dim2_red",
    "Dim3_start": "dim3_start",
    "Dim3_end": "dim3_end",
    "num_var": "num_var",
    "Training_epochs": "epochs",
    "Batch_size": "batch_size",
    "LearningR": "lr",
    "Latent_dim": "latent_dim",
    "Latent_dim_end": "latent_dim_end",
    "Loss_type": "loss_type",
    "alpha": "alpha",
    "gradient_clip_val": "gradient_clip_val",
    "Recon_iter": "recon_iter",
    "n_epoch": "lc_epochs",
    "latent_conditioner_batch": "lc_batch_size",
    "latent_conditioner_lr": "lc_lr",
    "latent_conditioner_weight_decay": "lc_weight_decay",
    "latent_conditioner_dropout_rate": "dropout",
    "use_spatial_attention": "use_attention",
    "input_type": "input_type",
    "param_dir": "param_dir",
    "param_data_type": "param_data_type",
    "num_param": "num_param",
    "use_e2e_training": "use_e2e_training",
    "e2e_loss_function": "e2e_loss_function",
    "e2e_vae_model_path": "e2e_vae_model_path",
    "LC_alpha": "lc_alpha",
    "use_latent_regularization": "use_latent_regularization",
    "latent_reg_weight": "latent_reg_weight",
}
NO_EFFECT = ("Stretch", "num_aug_f", "num_aug_a", "use_improved_e2e", "RESERVED")
SPELLINGS = {"input_type": {"csvs": "csv"}}
PRESET_LINES = ("header", "data set number", "beta exponent", "encoder filters", "conditioner filters")


def read_lines(path: Path, flag: str, given: bool) -> list[str] | None:
    """Return the lines of a text file, None when it is absent and nobody asked for it.

    Raises:
        UserError: it was asked for and cannot be read.
        DataError: it is no UTF-8 text.
    """
    if not path.is_file() and not given:
        return None
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark in front
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); {hint(path)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_condition(lines: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the values of a condition file, under the names of `TrainConfig`.

    Text after `#` is dropped; empty lines and lines that start with `%` or `'` are skipped; the first word is
    the key, the second its value. A later duplicate wins; unknown keys and keys without effect warn.

    Raises:
        DataError: a key without value, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text or text[0] in "%'":
            continue
        key, *rest = text.split()
        where = f"{path}, line {number}"
        if key in NO_EFFECT:
            _warn(f"{where}: {key} has no effect here")
            continue
        if key not in CONDITION_KEYS:
            near = difflib.get_close_matches(key, [*CONDITION_KEYS, *NO_EFFECT], n=1, cutoff=0.4)
            _warn(f"{where}: unknown key {key}, ignored" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        if not rest:
            raise DataError(f"{where}: {key} has no value, expected one after it; add it or remove the line")
        name = CONDITION_KEYS[key]
        if name in values:
            _warn(f"{where}: {key} again; the later value {rest[0]} wins over {values[name]}")
        values[name] = convert(name, rest[0], f"{where}: {key}")
    return values


def _warn(message: str) -> None:
    get_logger().warning("warning: %s", message)


def convert(name: str, text: str, where: str) -> Any:
    """Return `text` as the type of the field `name` of TrainConfig.

    Raises:
        DataError: it is no such value; the message begins with `where`.
    """
    kind = typing.get_type_hints(TrainConfig)[name]
    text = SPELLINGS.get(name, {}).get(text, text)
    try:
        value = parse_bool(text) if kind is bool else _number(text, int) if kind is int else kind(text)
    except (ValueError, OverflowError) as error:
        expected = {bool: "0 or 1", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise DataError(f"{where} is {text!r}, expected {expected}; correct it") from error
    if kind is float and value - value != 0:
        raise DataError(f"{where} is {text!r}, expected a finite number; correct it")
    choices = next(f.metadata["choices"] for f in fields(TrainConfig) if f.name == name)
    if choices and value not in choices:
        raise DataError(f"{where} is {text!r}, expected one of {', '.join(map(str, choices))}; correct it")
    return value


def _number(text: str, kind: type[int]) -> int:
    """Return a whole number, also of the spelling 16.0 or 1e3."""
    value = float(text)
    if value != kind(value):
        raise ValueError(text)
    return kind(value)


def read_preset(lines: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the values of a preset file: header, k, beta exponent, encoder and conditioner filters.

    Raises:
        DataError: fewer than five lines, or one that is not what it should be.
    """
    texts = [line.split("#")[0].strip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) != len(PRESET_LINES):
        raise DataError(
            f"{path}: {len(texts)} lines, expected {len(PRESET_LINES)}: {', '.join(PRESET_LINES)}; "
            "correct the file"
        )
    numbers = []
    for i in range(1, len(texts)):
        try:
            numbers.append([_number(word, int) for word in texts[i].replace(",", " ").split()])
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path}, line {i + 1} ({PRESET_LINES[i]}): {texts[i]!r}, expected whole numbers"
            ) from error
        count = len(numbers[-1])
        if count == 0 or (i < 3 and count != 1) or min(numbers[-1]) < (0 if i == 2 else 1):
            raise DataError(
                f"{path}, line {i + 1} ({PRESET_LINES[i]}): {texts[i]!r}, expected "
                f"{'one number' if i < 3 else 'numbers above 0'}; correct it"
            )
    (dataset,), (exponent,), filters, lc_filters = numbers
    return {
        "dataset": dataset,
        "init_beta": 10.0**-exponent if exponent else 1e-3,
        "filters": tuple(filters),
        "lc_filters": tuple(lc_filters),
    }


def named_preset(argv: Sequence[str]) -> str:
    """Return what `--preset` says on a command line, "" when it is not there."""
    for i, argument in enumerate(argv):
        if argument == "--preset" and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
    return ""


def resolve(
    argv: Sequence[str], run_type: type[R], *, description: str | None = None
) -> Parsed[TrainConfig, R]:
    """Turn a command line and the text files beside it into a configuration.

    Raises:
        UserError: wrong flags, or a file that was named and is absent.
        DataError: a file that does not say what it should.
    """
    parsed = parse(argv, TrainConfig, run_type, description=description, presets=TRAIN_PRESETS)
    origins, layers = dict(parsed.origins), _file_layers(parsed.config, named_preset(argv))
    values: dict[str, Any] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            if origins[name] == "command line" or origins[name].startswith("config "):
                continue
            values[name], origins[name] = value, origin
    try:
        config = replace(parsed.config, **values)
    except ValueError as error:
        raise UserError(f"{error} (from {', '.join(str(o) for o, _ in layers)})") from error
    return Parsed(config, parsed.run, origins)


def _file_layers(config: TrainConfig, preset: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (origin, values) of the text files that are there, in rising precedence."""
    layers = []
    candidates = [FOLDER / f"preset{preset}.txt"] if preset.isdecimal() else []
    paths = [Path(config.preset_file)] if config.preset_file else [*candidates, FOLDER / "preset.txt"]
    for path in paths:
        lines = read_lines(path, "--preset_file", bool(config.preset_file))
        if lines is not None:
            layers.append((str(path), read_preset(lines, path)))
            break
    path = Path(config.condition_file) if config.condition_file else FOLDER / "condition.txt"
    lines = read_lines(path, "--condition_file", bool(config.condition_file))
    if lines is not None:
        layers.append((str(path), read_condition(lines, path)))
    return layers


def find_data(config: TrainConfig) -> Path:
    """Return the path of the data set.

    Raises:
        DataError: there is none; says where was searched and what lies near.
    """
    if config.data:
        path = Path(config.data)
        if path.exists():
            return path
        folders_too = not path.suffix  # a folder of one file a sample
        raise DataError(
            f"{path}: no such data set{_near(path.name, [path.parent], folders_too)}; check --data"
        )
    folders = [FOLDER, Path()]
    for folder in folders:
        # Parameters may lie beside the fields under the same name: what can hold fields comes first.
        found = sorted(
            folder.glob(f"dataset{config.dataset}.*"), key=lambda p: (p.suffix.lower() not in SUFFIXES, p)
        )
        if found:
            return found[0]
    name = f"dataset{config.dataset}"
    searched = ", ".join(str(folder / f"{name}.*") for folder in folders)
    raise DataError(f"no data set: searched {searched}{_near(name, folders)}; name one with --data")


def _near(name: str, folders: Sequence[Path], folders_too: bool = False) -> str:
    """Return the name nearest to `name` of what can hold fields, as a phrase."""
    found = [p for folder in folders if folder.is_dir() for p in sorted(folder.iterdir())]
    names = {p.name: p for p in found if p.suffix.lower() in SUFFIXES or (folders_too and p.is_dir())}
    near = difflib.get_close_matches(name, names, n=1, cutoff=LIKENESS)
    return f", the nearest is {names[near[0]]}" if near else ""
