"""The grammar of a Darknet .cfg: `[kind]` lines, each followed by `name=value` lines; comments from # or ; on."""

import re
from dataclasses import dataclass

import numpy as np

from training.studies.workbench import DetectionError


@dataclass(frozen=True)
class Section:
    """One `[kind]` of a .cfg text with its `name=value` lines."""

    kind: str
    line: int
    options: dict[str, str]

    def number(self, name: str, default: float | None = None) -> float:
        """The value of one option; DetectionError if it is no number, or there is neither it nor a default."""
        if name not in self.options and default is not None:
            return default
        found = self.numbers(name)
        if len(found) != 1:
            raise self.error(f"{name} is {len(found)} numbers, expected one")
        return found[0]

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """The value of an option that counts something."""
        value = self.number(name, default)
        if value != int(value) or value < least:
            raise self.error(f"{name}={value:g}, expected a whole number from {least} on")
        return int(value)

    def numbers(self, name: str) -> list[float]:
        """The values of an option that is a list."""
        if name not in self.options:
            raise self.error(f"{name}= is missing")
        try:
            values = [float(value) for value in self.options[name].strip(",").split(",")]
        except ValueError:
            raise self.error(f"{name}={self.options[name]}, expected numbers") from None
        if not np.isfinite(values).all():
            raise self.error(f"{name}={self.options[name]}, expected finite numbers")
        return values

    def error(self, what: str) -> DetectionError:
        """What is wrong here, with the place."""
        return DetectionError(f"line {self.line}, [{self.kind}]: {what}")


def parse(text: str) -> list[Section]:
    """The sections of a .cfg text, [net] first; comments and blanks are dropped."""
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"\s", "", re.split("[#;]", raw)[0])
        name, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1], number, {}))
        elif equals and name and sections:
            sections[-1].options[name] = value
        elif line:
            raise DetectionError(f"line {number}: {raw.strip()[:40]!r} is neither [a layer] nor name=value of one")
    if not sections or sections[0].kind not in ("net", "network"):
        raise DetectionError("it is no Darknet .cfg: it does not begin with [net]")
    return sections
