"""`digits check`: tests a configuration and its models without serving."""

import sys

from serving.cli import load_settings

_DESCRIPTION = "Reports all mistakes that `digits serve` would meet in its settings, files and models, without serving."

_MANUAL = """\
Takes the settings of `digits serve`, from the same places; `digits serve
--help` explains them. Loads and tries every version of every model, each in a
process of its own, also a version that was refused before. Binds no port.

Prints a table of the versions. ACCURACY is the share of MNIST's test images
that the version reads right. CONTRACT is the version of the model contract.
WHOLE is the least probability of one whole digit at which an image is not
rejected as no digit; only a model of contract 2 has it.

examples:
  digits check
  digits check --models models --tokens tokens.toml

exit status:
  0  no mistake; there may be warnings on stderr
  1  mistakes, listed on stderr
  2  invalid settings
"""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    settings = load_settings.parse_command_line("check", _DESCRIPTION, _MANUAL, arguments)
    if settings is None:
        return 2

    from serving.cli.findings import check

    findings = check(settings)
    print(findings.table())
    for warning in findings.warnings:
        print(f"digits check: warning: {warning}", file=sys.stderr)
    for mistake in findings.mistakes:
        print(f"digits check: {mistake}", file=sys.stderr)
    return int(bool(findings.mistakes))
