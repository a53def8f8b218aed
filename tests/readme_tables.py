"""README's tables of settings and metrics, from the code: `make readme` writes them, and a test holds them to it."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.drift import DriftCollector
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.telemetry.multiprocess_metrics import SupervisorMetrics

README = Path(__file__).parent.parent / "README.md"


def settings() -> list[str]:
    """A row for each setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else f"`{str(field.default).lower()}`"
        elsewhere = {"models": "the bundled models", "workers": "the CPU quota", "instances": "2, or 1 with one core"}
        shown = elsewhere.get(name, default)
        rows.append(f"| `--{name.replace('_', '-')}` | {shown} | {field.description} |")
    return rows


def metrics() -> list[str]:
    """A row for each metric."""
    rows = []
    workers = SupervisorMetrics(CollectorRegistry(), list)
    for metric in [*DriftCollector(AccuracyCollector(Metrics().registry)).collect(), *workers.registry.collect()]:
        if metric.name.startswith("digits_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            rows.append(f"| `{name}` | {metric.type} | {metric.documentation} |")
    return rows


def written(text: str) -> str:
    """The README's text with both tables as they should be."""
    for section, rows in (("Settings", settings()), ("Metrics", metrics())):
        before, head, rest = text.partition(f"\n## {section}\n")
        lines = rest.splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("|---")) + 1
        end = next(n for n, line in enumerate(lines[start:], start) if not line.startswith("|"))
        text = before + head + "\n".join([*lines[:start], *rows, *lines[end:]]) + "\n"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
