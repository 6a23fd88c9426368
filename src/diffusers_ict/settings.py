"""Settings as dataclass fields: default, help text, allowed values and role stand in one place, beside each other."""

import argparse
import dataclasses
import difflib
import math
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any, NoReturn

from .errors import UserError

# What other programs call these settings and commands.
SYNONYMS = {
    "train_data_dir": "data data_dir folder images",
    "dataset_name": "dataset",
    "resolution": "image_size img_size size",
    "center_crop": "crop",
    "class_conditional": "conditional classes",
    "random_flip": "flip hflip",
    "config": "recipe",
    "loss": "method",
    "pretrained_model_name_or_path": "model",
    "pretrained_vae_name_or_path": "vae autoencoder vae_model_path pretrained_vae_model_name_or_path",
    "train_batch_size": "batch batch_size per_device_train_batch_size",
    "num_train_epochs": "epochs num_epochs",
    "max_train_steps": "steps num_steps max_steps iterations",
    "learning_rate": "lr",
    "ema_decays": "ema ema_decay",
    "mixed_precision": "amp fp16 bf16",
    "torch_compile": "compile",
    "dataloader_num_workers": "workers num_workers",
    "checkpointing_steps": "save_steps",
    "resume_from_checkpoint": "resume",
    "output_dir": "out outdir output",
    "hub_model_id": "repo_id",
    "num_samples": "samples count",
    "num_inference_steps": "steps num_steps",
    "evaluate": "eval measure metrics",
    "sample": "draw generate",
    "publish": "push upload",
    "export_onnx": "export onnx",
    "demo": "serve web",
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name among `known` that was probably meant by `word`, or None: its alias, or the one spelt most alike."""
    plain = word.strip("-").lower().replace("-", "_")
    names = {name.lower().replace("-", "_"): name for name in known}
    meant = [name for name, synonyms in SYNONYMS.items() if plain in synonyms.split() and name in names]
    found = meant or difflib.get_close_matches(plain, names, 1, 0.7)
    return names[found[0]] if found else None


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is also a command line flag and a key of a YAML file.

    Args:
        help: one line for --help.
        choices: the values it may take.
        at_least, above, below: bounds of a number.
    """
    metadata = {"help": help, "choices": choices, "bounds": (at_least, above, below)}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_bounds(settings: Any) -> None:
    """Check that every number of a dataclass made of settings is finite and within its bounds.

    Numbers of numpy and tensors of one become Python's, which alone can be written into recipes and checkpoints.

    Raises:
        UserError: naming the first value that is not.
    """
    for item in dataclasses.fields(settings):
        at_least, above, below = bounds = item.metadata.get("bounds", (None, None, None))
        given = getattr(settings, item.name)
        value = _of_python(given)
        if value is not given:
            object.__setattr__(settings, item.name, value)  # also where the dataclass is frozen
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"`{item.name}` must be finite, got {value}.")
        if value is None or bounds == (None, None, None):
            continue
        if any(isinstance(number, bool) for number in numbers):  # which Python takes for 0 and 1
            raise UserError(f"`{item.name}` must be a number, got {value}.")
        rules = [
            (at_least, "at least", operator.ge),
            (above, "greater than", operator.gt),
            (below, "less than", operator.lt),
        ]
        stated = [(bound, words, holds) for bound, words, holds in rules if bound is not None]
        if not all(holds(value, bound) for bound, _, holds in stated):
            allowed = " and ".join(f"{words} {bound:g}" for bound, words, _ in stated)
            raise UserError(f"`{item.name}` must be {allowed}, got {value}.")


def _of_python(value: Any) -> Any:
    """A setting whose numbers are Python's; the very same object where they are already."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list) and any(hasattr(one, "tolist") for one in value):
        return [_of_python(one) for one in value]
    return value


def default_of(item: dataclasses.Field) -> Any:
    """The default value of a field."""
    return item.default_factory() if callable(item.default_factory) else item.default


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises UserError for invalid arguments, instead of leaving the program.

    Flags are not abbreviated: a new flag must not change what an old command means. A value that begins with ~ is a
    path below the user's home (shells leave --flag=~/folder as it is): nothing else begins so, no Hub id either.

    Args:
        about: docstring of the program: --help begins with its first line, and ends with the others.
    """

    def __init__(self, prog: str, about: str | None) -> None:
        first, _, others = (about or "").partition("\n")
        super().__init__(
            prog,
            description=first,
            epilog=others.strip("\n"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse words, by default those of the command line."""
        words = sys.argv[1:] if args is None else args
        return super().parse_args([_below_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        hint = self._instead(message.split()[2:]) if message.startswith("unrecognized") else ""
        message = re.sub(r"\bhf_\w+", "hf_...", " ".join(message.split()))  # a token is not for the screen, or a log
        raise UserError(f"{message}{hint}.")

    def _instead(self, words: list[str]) -> str:
        """What to write instead of words that are no arguments of this program, for the end of a sentence."""
        flags = [flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        wrong = [word.partition("=")[0] for word in words if re.match("-+[A-Za-z]", word)]
        near = dict.fromkeys(f"--{found}" for word in wrong if (found := nearest(word, flags)) is not None)
        if near:
            return f"; try {', '.join(near)}"
        of_methods = ", and for settings of a method, `objective` NAME=VALUE" if "objective" in flags else ""
        return f"; see `help`{of_methods}"


def _below_home(word: str) -> str:
    """A word of a command line, in which ~ or --flag=~ became the path of the user's home."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + os.path.expanduser(value)


def add_flags(
    parser: argparse.ArgumentParser,
    groups: dict[str, type],
    first: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> None:
    """One flag for each field that a dataclass of settings declares; flags that are not given have no entry.

    Args:
        groups: the dataclasses by their titles in --help.
        first: names of the fields that --help begins with, in this order; only: of those that become flags [all].
    """
    words = [action.dest.upper() for action in parser._actions if not action.option_strings]
    parser.usage = " ".join(["%(prog)s", *words, "[--FLAG VALUE ...]"])  # the flags alone would fill a page
    fields = {item.name: (item, settings) for settings in groups.values() for item in own_fields(settings)}
    if first:
        _add_group(parser.add_argument_group("start here"), [fields[name] for name in first])
    for title, settings in groups.items():
        names = [item.name for item in own_fields(settings) if only is None or item.name in only]
        _add_group(parser.add_argument_group(title), [fields[name] for name in names if name not in first])


def add_assignments(parser: argparse.ArgumentParser, dest: str, names: dict[str, str]) -> None:
    """Flags that are short for --DEST NAME=VALUE, names by flag; --help does not list them."""
    for flag, name in names.items():

        def named(word: str, name: str = name) -> tuple[str, Any]:
            return _assignment(f"{name}={word}")

        options: dict[str, Any] = {"type": named, "nargs": 1, "action": _Assignments}
        parser.add_argument(f"--{flag}", dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)


def own_fields(settings: type) -> list[dataclasses.Field]:
    """The fields that a dataclass declares itself."""
    return [item for item in dataclasses.fields(settings) if item.name in settings.__annotations__]


def _add_group(group: argparse._ArgumentGroup, fields: list[tuple[dataclasses.Field, type]]) -> None:
    for item, settings in fields:
        hints = typing.get_type_hints(settings)
        options: dict[str, Any] = {"help": item.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):
            kind = next(arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is list:
            options |= {"type": typing.get_args(kind)[0], "nargs": "*"}
        elif typing.get_origin(kind) is dict:
            options |= {"type": _assignment, "nargs": "*", "metavar": "NAME=VALUE", "action": _Assignments}
        else:
            options |= {"type": kind, "choices": item.metadata["choices"]}
        if (default := default_of(item)) not in (None, {}):
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            options["help"] += f" [{shown}]"
        group.add_argument(f"--{item.name}", **options)


class _Assignments(argparse.Action):
    """NAME=VALUE words of one or more flags, later ones winning, as one mapping."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest, None) or {}), **dict(values)})


def _assignment(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is wanted, got {word!r}")
    return name, _plain(os.path.expanduser(value))


def _plain(word: str) -> Any:
    """A word as the plain type it spells: an integer, a number, true, false, null, or text."""
    for convert in (int, float):
        with suppress(ValueError):
            return convert(word)
    return {"true": True, "false": False, "null": None, "none": None}.get(word.lower(), word)


def as_flag(name: str, value: Any) -> list[str]:
    """One setting as the words of a command line."""
    if isinstance(value, dict):
        return [f"--{name}", *(f"{key}={'null' if item is None else item}" for key, item in value.items())]
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
