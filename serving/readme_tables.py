"""Writes the tables of settings and metrics in serving/README.md from the code: `make readme`.

A test fails when a table differs from the code.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.drift import DriftCollector
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.telemetry.multiprocess_metrics import SupervisorMetrics

README = Path(__file__).parent / "README.md"

# Defaults that depend on the machine or on the path of the installation.
_COMPUTED_DEFAULTS = {"models": "the bundled models", "workers": "the CPU quota", "instances": "2, or 1 with one core"}


def settings_rows() -> list[str]:
    """Returns one Markdown table row per setting: flag, default, description."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else f"`{str(field.default).lower()}`"
        rows.append(f"| `--{name.replace('_', '-')}` | {_COMPUTED_DEFAULTS.get(name, default)} | {field.description} |")
    return rows


def metric_rows() -> list[str]:
    """Returns one Markdown table row per metric of the service: name, type, description."""
    rows = []
    workers = SupervisorMetrics(CollectorRegistry(), list)
    for metric in [*DriftCollector(AccuracyCollector(Metrics().registry)).collect(), *workers.registry.collect()]:
        if metric.name.startswith("digits_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            rows.append(f"| `{name}` | {metric.type} | {metric.documentation} |")
    return rows


def with_tables(text: str) -> str:
    """Returns the text of the README with both tables replaced by those of the code."""
    for section, rows in (("Table of settings", settings_rows()), ("Table of metrics", metric_rows())):
        before, heading, rest = text.partition(f"\n### {section}\n")
        lines = rest.splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("|---")) + 1
        end = next(n for n, line in enumerate(lines[start:], start) if not line.startswith("|"))
        text = before + heading + "\n".join([*lines[:start], *rows, *lines[end:]]) + "\n"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
