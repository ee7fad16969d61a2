"""Flags from dataclasses: one source of defaults, both spellings, presets, config files, exit codes.

A configuration is a frozen dataclass whose fields are made by `option`. `parse` turns dataclasses into flags
and command lines into dataclasses. A value comes from, in rising precedence: the default, the preset, the
`--config` file, the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import os
import shlex
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from common.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    DataError,
    StrataError,
    UserError,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

A = TypeVar("A", bound="DataclassInstance")
R = TypeVar("R", bound="DataclassInstance")
_TRUE = {"true", "t", "yes", "y", "on", "1"}
_FALSE = {"false", "f", "no", "n", "off", "0"}


def option(
    default: Any,
    help: str,  # noqa: A002 - the word that argparse users know
    *,
    unit: str = "",
    aliases: Sequence[str] = (),
    choices: Sequence[Any] = (),
) -> Any:
    """Return a dataclass field that is also a flag.

    Args:
        default: its value when nothing is given; a list becomes a tuple.
        help: one line for `--help`.
        unit: printed in brackets, for numbers that have one.
        aliases: further names of the flag, without dashes.
        choices: the values allowed.
    """
    metadata = {"help": help, "unit": unit, "aliases": tuple(aliases), "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


def parse_bool(text: str | bool) -> bool:
    """Return the truth value of true/false, t/f, yes/no, y/n, on/off, 1/0 in any case.

    Raises:
        ValueError: anything else.
    """
    if isinstance(text, bool):
        return text
    word = str(text).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{text!r}, expected true or false")


@dataclass(frozen=True)
class Parsed(Generic[A, R]):
    """What a command line says.

    Attributes:
        config: what to compute.
        run: how and where to run it.
        origins: field name -> "default", "preset NAME", "config FILE" or "command line".
    """

    config: A
    run: R
    origins: dict[str, str]


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line and suggest the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """Raise UserError for what is no flag of this parser and no value of one."""
        flag = next((word for word in extra if word.startswith("-")), "")
        if not flag:
            self.error(
                f"{extra[0] or repr('')}: unexpected word, values follow a flag{self._example(extra[0])}"
            )
        known = [name for action in self._actions for name in action.option_strings]
        near = difflib.get_close_matches(flag.split("=")[0], known, n=1)
        self.error(f"{flag}: unknown flag" + (f", did you mean {near[0]}?" if near else ""))

    def _example(self, word: str) -> str:
        """Return how the first flag that takes a text or path would be given with this word."""
        actions = (a for a in self._actions if a.metavar in ("STR", "PATH") and not a.choices)
        name = next((a.option_strings[0] for a in actions), "")
        return f", as in {name} {shlex.quote(word)}" if name else ""


def parse(
    argv: Sequence[str],
    config_type: type[A],
    run_type: type[R],
    *,
    description: str | None = None,
    presets: Mapping[str, Callable[[], A]] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> Parsed[A, R]:
    """Turn a command line into a configuration and run options.

    Args:
        argv: the arguments, without the program's name.
        config_type: dataclass of what to compute.
        run_type: dataclass of how to run (`common.run.MachineOptions` or `TrainOptions`).
        description: shown by `--help`.
        presets: name -> function that returns a configuration; adds `--preset`.
        aliases: further flag names of run options, field name -> names.

    Raises:
        UserError: unknown flags, bad values, or values that the configuration refuses.
        SystemExit: with 0 after `--help`.
    """
    presets = presets or {}
    fields = {f.name: f for kind in (config_type, run_type) for f in dataclasses.fields(kind)}
    parser = _build_parser(fields, (config_type, run_type), description, presets, aliases or {})
    known, extra = parser.parse_known_args([_underscored(a) for a in argv])
    if extra:
        parser.refuse(extra)
    given = vars(known)
    preset, config_path = given.pop("preset", None), given.pop("config", None)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(fields, "default")

    def take(layer: Mapping[str, Any], origin: str) -> None:
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))

    if preset:
        chosen = presets[preset]()
        names = [f.name for f in dataclasses.fields(config_type)]
        changed = {n: getattr(chosen, n) for n in names if getattr(chosen, n) != fields[n].default}
        take(changed, f"preset {preset}")
    if config_path:
        take(_read_config(config_path, fields, (config_type, run_type)), f"config {config_path}")
    take({name: value for name, value in given.items() if value is not None}, "command line")
    return Parsed(_make(config_type, values), _make(run_type, values), origins)


def flags_of(config: DataclassInstance, leave_out: Iterable[str] = ()) -> str:
    """Return the flags, quoted for a shell, that make this configuration out of its defaults.

    Args:
        config: a dataclass of options.
        leave_out: fields that are told elsewhere, or are of no interest.
    """
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in set(leave_out) or value == field.default or value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [
            f"--{field.name}",
            *(str(one).lower() if isinstance(one, bool) else str(one) for one in values),
        ]
    return shlex.join(words)


def split_commas(values: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a flag that takes several, separated by spaces, commas or both."""
    return tuple(word for value in values for word in value.split(",") if word)


def _make(kind: type[A], values: Mapping[str, Any]) -> A:
    names = {f.name for f in dataclasses.fields(kind)}
    try:
        return kind(**{name: value for name, value in values.items() if name in names})
    except ValueError as error:
        raise UserError(str(error)) from error


def _underscored(argument: str) -> str:
    """Return `--num-iter=3` as `--num_iter=3`; anything but a flag is left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _build_parser(
    fields: Mapping[str, dataclasses.Field[Any]],
    kinds: Sequence[type[Any]],
    description: str | None,
    presets: Mapping[str, Any],
    aliases: Mapping[str, Sequence[str]],
) -> _Parser:
    parser = _Parser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if presets:
        parser.add_argument("--preset", choices=sorted(presets), help="named set of values to start from")
    parser.add_argument("--config", metavar="FILE", help="JSON file of flag values, as a run's config.json")
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        title = "run" if kind is kinds[-1] else kind.__name__
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(kind):
            _add_flag(group, fields[field.name], hints[field.name], tuple(aliases.get(field.name, ())))
    return parser


def _add_flag(group: Any, field: dataclasses.Field[Any], hint: Any, more_names: tuple[str, ...]) -> None:
    meta = field.metadata
    names = [_underscored(f"--{name}") for name in (field.name, *meta.get("aliases", ()), *more_names)]
    shown = "none" if field.default is None or field.default == "" else field.default
    shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else shown
    unit = f" [{meta['unit']}]" if meta.get("unit") else ""
    text = f"{meta.get('help', '')}{unit} (default: {shown})".replace("%", "%%")
    kind, is_many = _value_type(hint)
    choices = list(meta.get("choices", ())) or None
    common: dict[str, Any] = {"dest": field.name, "default": None, "help": text}
    if kind is bool:
        group.add_argument(*names, nargs="?", const=True, type=_typed(parse_bool), metavar="BOOL", **common)
        negative = [f"--no_{name[2:]}" for name in names]
        group.add_argument(
            *negative, dest=field.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    else:
        metavar = "{" + ",".join(map(str, choices)) + "}" if choices else kind.__name__.upper()
        many: dict[str, Any] = {"nargs": "*", "action": _Many} if is_many else {}
        group.add_argument(*names, type=_typed(kind), choices=choices, metavar=metavar, **many, **common)


class _Many(argparse.Action):
    """Store the values as a tuple."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _name: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _typed(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter whose failure reads well in argparse's message."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
            if isinstance(value, float) and not math.isfinite(value):  # comparisons would let NaN through
                raise ValueError
            return value
        except ValueError as error:
            word = {"int": "a whole number", "float": "a number"}.get(getattr(kind, "__name__", ""), "")
            raise argparse.ArgumentTypeError(f"{text!r}, expected {word}" if word else str(error)) from error

    return convert


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Return (element type, is it a tuple) of a field's annotation; `X | None` counts as X."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if hint not in (int, float, str, bool, Path):
        raise TypeError(f"a flag cannot have the type {hint}")
    return hint, False


def _read_config(
    path: str, fields: Mapping[str, dataclasses.Field[Any]], kinds: Sequence[type[Any]]
) -> dict[str, Any]:
    """Return the values of a JSON file, checked and converted as flags are.

    A run's own `config.json` works too: its "config" part is read, and nothing of the run it came from.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no valid JSON ({error}); expected an object of flag values") from error
    if isinstance(document, dict) and isinstance(document.get("config"), dict):
        document = document["config"]
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds a {type(document).__name__}, expected an object of flag values")
    hints = {name: hint for kind in kinds for name, hint in typing.get_type_hints(kind).items()}
    values = {}
    for name, value in document.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(
                f"{path}: unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
            )
        values[name] = _from_json(path, fields[name], hints[name], value)
    return values


def _from_json(path: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    kind, is_many = _value_type(hint)
    if value is None:
        return field.default if field.default is not MISSING else None
    try:
        if is_many and not isinstance(value, list):  # a text would fall apart into its letters
            raise ValueError
        value = tuple(_plain_value(kind, v) for v in value) if is_many else _plain_value(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: {field.name} is {value!r}, expected {kind.__name__}{' list' if is_many else ''}"
        ) from error
    choices = field.metadata.get("choices", ())
    if choices and not set(value if is_many else (value,)) <= set(choices):
        raise UserError(f"{path}: {field.name} is {value!r}, expected one of {', '.join(map(str, choices))}")
    return value


def _plain_value(kind: Any, value: Any) -> Any:
    """Return a value of JSON as `kind`; ValueError, TypeError or OverflowError when it is something else."""
    if kind is bool:
        return parse_bool(value)
    if isinstance(value, bool | dict | list) or (kind is int and int(value) != float(value)):
        raise ValueError
    return kind(value)


def main(function: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script's function and exit with the house's exit code.

    Errors that a user can cause become one line on stderr; one that all ranks share is said by rank 0 only.
    A bug keeps its traceback (exit code 1), recorded for torchrun.
    """
    from common.distributed import launched, leave, record

    code = record(_exit_code)(function, sys.argv[1:] if argv is None else argv)
    if launched():
        leave(code or EXIT_DONE)
    sys.exit(code)


def _exit_code(function: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        _require_safe_torch()
        code = function(argv) or EXIT_DONE
        if sys.stdout is not None:  # None when the caller closed it
            sys.stdout.flush()
        return code
    except StrataError as error:
        is_main = os.environ.get("RANK", "0") == "0"
        if is_main or not error.shared:
            _say(f"error: {error}")
        if error.shared and not is_main:
            time.sleep(1.0)  # torchrun kills the others when the first rank leaves: let rank 0 speak
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `script | head`
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _require_safe_torch() -> None:
    """Refuse a torch whose safe loading is known to be unsafe (CVE-2025-32434, CVE-2026-24747)."""
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 10):
        raise UserError(f"torch {torch.__version__} found, 2.10 or newer needed; run: make setup")
