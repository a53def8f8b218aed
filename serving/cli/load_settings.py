"""Where settings come from: flags, else the environment, else a TOML file, else the defaults in settings.py."""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from serving.settings import GROUPS, Settings

# What the other commands read from the environment.
_OF_OTHER_COMMANDS = {"DIGITS_COMMIT", "DIGITS_DATA", "DIGITS_TOKEN", "DIGITS_WRITERS", "DIGITS_YOLO"}


class SettingsError(Exception):
    """The settings can't be used.

    Attributes:
        mistakes: everything that is wrong with them, a line each, by the name that it was set by.
    """

    def __init__(self, mistakes: list[str]):
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives a command all settings as flags, in the groups of the manual. What is given comes back by `given`."""
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
    """The settings among the flags of a command line, by name."""
    return {name: value for name, value in vars(options).items() if name in Settings.model_fields}


def read(flags: Mapping[str, str], unknown: Sequence[str] = ()) -> Settings:
    """The settings from `flags`, the environment, the file that either of them names, and the defaults.

    Args:
        flags: what is given on the command line, by the settings' names.
        unknown: what else is given there, which is a mistake.

    Raises:
        SettingsError: with all mistakes of all sources at once.
    """
    environment = EnvSettingsSource(Settings)()
    path = flags.get("config", environment.get("config"))
    written: dict[str, Any] = {}
    mistakes = _strays(unknown)
    unreadable = False
    if path is not None:
        try:
            written = _parse(Path(path))
        except SettingsError as error:
            mistakes += error.mistakes
            unreadable = True
    allowed = Settings.model_fields.keys() - {"config"}
    mistakes += [f"{key} in {path}: no such setting{_like(key, allowed)}" for key in written if key not in allowed]

    def source(name: str) -> str:
        if name in written and name not in environment and name not in flags:
            return f"{name} in {path}"
        return _variable(name) if name in environment and name not in flags else _flag(name)

    known = {key: value for key, value in written.items() if key in allowed}
    try:
        settings = Settings(**{**known, **environment, **flags})
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["loc"]:
                name = str(mistake["loc"][0])
                mistakes.append(f"{source(name)}: {_explain(mistake)}")
            elif not unreadable:  # two settings that contradict each other; what is in the file could mend it
                mistakes.append(re.sub(r"\b[a-z]+(_[a-z]+)+\b", lambda word: _known_as(word[0], source), _explain(mistake)))
    if mistakes:
        raise SettingsError(mistakes)
    return settings


def unknown_variables() -> list[str]:
    """The DIGITS_ variables of the environment that say nothing to the server, each with what it may have been meant as.

    They are no mistake: where a Service is called digits or digits-something, Kubernetes sets variables of such names.
    """
    known = {_variable(name) for name in Settings.model_fields}
    return [
        f"{name}{_like(name, known)}"
        for name in sorted(os.environ)
        if name.upper().startswith("DIGITS_") and name.upper() not in known | _OF_OTHER_COMMANDS
    ]


def _parse(path: Path) -> dict[str, Any]:
    # pydantic-settings' own source for TOML passes over a file that is not there, which here must be said.
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: not UTF-8 text"]) from error
    except (ValueError, RecursionError) as error:  # tomllib raises more than its own for absurd nesting and numbers
        raise SettingsError([f"{path}: not TOML: {error}"]) from error


def _strays(words: Sequence[str]) -> list[str]:
    """Words of the command line that are no flags of ours; those that only follow one are likely its value."""
    names = [word.split("=")[0] for word in words if word.startswith("-")]
    flags = [_flag(setting) for setting in Settings.model_fields]
    return [f"{name}: no such setting{_like(name, flags)}" for name in names or words]


def _explain(mistake: ErrorDetails) -> str:
    if mistake["type"] == "value_error":  # raised by a validator of ours
        return str(mistake["ctx"]["error"])
    value = mistake["input"]
    hint = ""
    if isinstance(value, str) and value.startswith("tcp://"):
        hint = "; Kubernetes sets such variables for a Service of that name, but not with enableServiceLinks: false"
    return f"{mistake['msg']}, not {value!r}{hint}"


def _known_as(word: str, source: Any) -> str:
    return str(source(word)) if word in Settings.model_fields else word


def _like(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.8)
    return f"; did you mean {close[0]}?" if close else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"DIGITS_{name.upper()}"


def _metavar(name: str, field: FieldInfo) -> str:
    """What stands for the value of a flag: its unit, or what it may be."""
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
