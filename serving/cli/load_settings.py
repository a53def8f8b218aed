"""Reads settings from flags, else the environment, else a TOML file, else the defaults in settings.py."""

import argparse
import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from serving.cli.manual import new_parser
from serving.settings import GROUPS, Settings

# Environment variables of other commands, of the tests and of `make`.
_OTHER_VARIABLES = {"DIGITS_COMMIT", "DIGITS_DATA", "DIGITS_TOKEN", "DIGITS_WRITERS", "DIGITS_YOLO"}


class SettingsError(Exception):
    """The settings can't be used.

    Attributes:
        mistakes: all mistakes, a line each; each names the flag, variable or key that it is about.
    """

    def __init__(self, mistakes: list[str]):
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def parse_command_line(command: str, description: str, manual: str, arguments: list[str]) -> Settings | None:
    """Reads the settings of a command from its arguments, the environment and the file that they name.

    Args:
        command: name of the command, which starts each error message.
        description: first lines of the command's help.
        manual: last lines of the command's help.
        arguments: the command line after the name of the command.

    Returns:
        The settings; None if they can't be used, and the mistakes are on stderr.
    """
    parser = new_parser(command, description, manual)
    parser.usage = f"digits {command} [SETTING...]"  # the help lists all settings below
    parser.allow_abbrev = False  # a prefix that is unique today may not be tomorrow
    add_flags(parser)
    options, unknown = parser.parse_known_args(arguments)
    try:
        return read(given(options), unknown)
    except SettingsError as error:
        for mistake in error.mistakes:
            print(f"digits {command}: {mistake}", file=sys.stderr)
        return None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all settings to a command as flags, in the groups of the manual; `given` returns their values."""
    group: argparse._ArgumentGroup | argparse.ArgumentParser = parser
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        group.add_argument(
            _flag(name),
            dest=name,
            metavar=_metavar(name, field),
            help=f"{field.description} (default: {shown})".replace("%", "%%"),
            nargs="?" if field.annotation is bool else None,
            const="true" if field.annotation is bool else None,
            default=argparse.SUPPRESS,
        )


def given(options: argparse.Namespace) -> dict[str, str]:
    """Returns the settings among the flags of a command line, by name."""
    return {name: value for name, value in vars(options).items() if name in Settings.model_fields}


def read(flags: Mapping[str, str], unknown: Sequence[str] = ()) -> Settings:
    """Reads the settings from `flags`, the environment, the TOML file that either names, and the defaults.

    Args:
        flags: values on the command line, by setting.
        unknown: other words on the command line; each is a mistake.

    Raises:
        SettingsError: with all mistakes of all sources at once.
    """
    environment = EnvSettingsSource(Settings)()
    path = flags.get("config", environment.get("config"))
    in_file: dict[str, Any] = {}
    mistakes = _unknown_flags(unknown)
    unreadable = False
    if path is not None:
        try:
            in_file = _read_file(Path(path))
        except SettingsError as error:
            mistakes += error.mistakes
            unreadable = True
    allowed = Settings.model_fields.keys() - {"config"}
    mistakes += [f"{key} in {path}: no such setting{_suggestion(key, allowed)}" for key in in_file if key not in allowed]

    def source(name: str) -> str:
        if name in in_file and name not in environment and name not in flags:
            return f"{name} in {path}"
        return _variable(name) if name in environment and name not in flags else _flag(name)

    known = {key: value for key, value in in_file.items() if key in allowed}
    try:
        settings = Settings(**{**known, **environment, **flags})
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["loc"]:
                name = str(mistake["loc"][0])
                mistakes.append(f"{source(name)}: {_explain(mistake)}")
            elif not unreadable:  # two settings contradict each other, and the unreadable file might set one of them
                mistakes.append(_name_by_source(_explain(mistake), source))
    if mistakes:
        raise SettingsError(mistakes)
    return settings


def unknown_variables() -> list[str]:
    """Returns the DIGITS_ variables of the environment that are no settings, each with the likely intended name.

    They are no mistake: for a Service called digits or digits-something, Kubernetes sets variables with such names.
    """
    known = {_variable(name) for name in Settings.model_fields}
    return [
        f"{name}{_suggestion(name, known)}"
        for name in sorted(os.environ)
        if name.upper().startswith("DIGITS_") and name.upper() not in known | _OTHER_VARIABLES
    ]


def _read_file(path: Path) -> dict[str, Any]:
    # pydantic-settings has a source for TOML as well, but ignores a file that does not exist.
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: not UTF-8 text"]) from error
    except (ValueError, RecursionError) as error:  # tomllib also raises these, for absurd nesting and numbers
        raise SettingsError([f"{path}: not TOML: {error}"]) from error


def _unknown_flags(words: Sequence[str]) -> list[str]:
    """Returns a mistake for each unknown flag, else for each word; a word after an unknown flag is likely its value."""
    names = [word.split("=")[0] for word in words if word.startswith("-")]
    flags = [_flag(setting) for setting in Settings.model_fields]
    return [f"{name}: no such setting{_suggestion(name, flags)}" for name in names or words]


def _explain(mistake: ErrorDetails) -> str:
    if mistake["type"] == "value_error":  # raised by a validator of Settings
        return str(mistake["ctx"]["error"])
    value = mistake["input"]
    hint = ""
    if isinstance(value, str) and value.startswith("tcp://"):
        hint = "; Kubernetes sets this variable for a Service of that name, unless the pod has enableServiceLinks: false"
    return f"{mistake['msg']}, not {value!r}{hint}"


def _name_by_source(message: str, source: Callable[[str], str]) -> str:
    """Replaces the names of settings in a message by the flag, variable or key that set them."""
    return re.sub(
        r"\b[a-z]+(_[a-z]+)+\b", lambda word: source(word[0]) if word[0] in Settings.model_fields else word[0], message
    )


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.8)
    return f"; did you mean {close[0]}?" if close else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"DIGITS_{name.upper()}"


def _metavar(name: str, field: FieldInfo) -> str:
    """Returns the placeholder for a flag's value: its unit, its choices or its type."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return "|".join(choices)
    if field.annotation is bool:
        return "true|false"
    for unit in ("seconds", "ms", "port"):
        if name.endswith(f"_{unit}"):
            return unit.upper()
    if field.annotation in (int, float):
        return "N"
    return "PATH" if Path in (field.annotation, *get_args(field.annotation)) else "TEXT"
