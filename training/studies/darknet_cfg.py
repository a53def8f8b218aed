"""Parses Darknet .cfg files: `[kind]` lines, each followed by `name=value` lines; `#` or `;` starts a comment."""

import re
from dataclasses import dataclass

import numpy as np

from training.studies.workbench import DetectionError


@dataclass(frozen=True)
class Section:
    """One `[kind]` of a .cfg file with its `name=value` options."""

    kind: str
    line: int
    options: dict[str, str]

    def number(self, name: str, default: float | None = None) -> float:
        """Returns one numeric option; DetectionError if it is not a number, or if it is missing and has no default."""
        if name not in self.options and default is not None:
            return default
        found = self.numbers(name)
        if len(found) != 1:
            raise self.error(f"{name} has {len(found)} numbers, expected one")
        return found[0]

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns an option that is a whole number of at least `least`."""
        value = self.number(name, default)
        if value != int(value) or value < least:
            raise self.error(f"{name}={value:g}, expected a whole number of at least {least}")
        return int(value)

    def numbers(self, name: str) -> list[float]:
        """Returns an option that is a list of numbers."""
        if name not in self.options:
            raise self.error(f"{name}= is missing")
        try:
            values = [float(value) for value in self.options[name].strip(",").split(",")]
        except ValueError:
            raise self.error(f"{name}={self.options[name]}, expected numbers") from None
        if not np.isfinite(values).all():
            raise self.error(f"{name}={self.options[name]}, expected finite numbers")
        return values

    def error(self, message: str) -> DetectionError:
        """Returns an error that names this section and its line."""
        return DetectionError(f"line {self.line}, [{self.kind}]: {message}")


def parse(text: str) -> list[Section]:
    """Parses a .cfg text into its sections, [net] first, without comments and blanks."""
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"\s", "", re.split("[#;]", raw)[0])
        name, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1], number, {}))
        elif equals and name and sections:
            sections[-1].options[name] = value
        elif line:
            raise DetectionError(
                f"line {number}: {raw.strip()[:40]!r} is neither a [layer] nor one of its name=value options"
            )
    if not sections or sections[0].kind not in ("net", "network"):
        raise DetectionError("not a Darknet .cfg file: it does not start with [net]")
    return sections
