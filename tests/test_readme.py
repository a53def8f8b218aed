import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.merged_metrics import SupervisorMetrics
from serving.metrics import Metrics
from serving.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")]


def test_the_settings_table_is_that_of_the_code() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else f"`{field.default}`"
        shown = {"models": "the bundled model", "workers": "the CPU quota"}.get(name, default)
        expected.append([f"`--{name.replace('_', '-')}`", shown, field.description])
    assert rows("Settings") == expected


def test_the_metrics_table_is_that_of_the_code() -> None:
    expected = []
    workers = SupervisorMetrics(CollectorRegistry(), list)
    for metric in [*Metrics().registry.collect(), *workers.registry.collect()]:
        if metric.name.startswith("digits_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            expected.append([f"`{name}`", metric.type, metric.documentation])
    assert rows("Metrics") == expected


def test_the_file_tree_names_every_module_of_both_halves() -> None:
    tree = README.split("\n## Where to look\n")[1]
    halves = {half: tree.split(f"\n{half}/ ")[1].split("/  ")[0] for half in ("training", "serving")}
    for half, described in halves.items():
        named = set(re.findall(r"\b\w+\.py\b", described)) - {"drawn_digits.py"}
        assert named == {file.name for file in (ROOT / half).glob("*.py")} - {"__init__.py"}


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"\b(BENCH|COMMIT|SETTINGS|METRICS|TODO)\b", README)


def test_every_verb_of_the_makefile_has_a_line_in_its_help_or_is_a_part_of_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert described <= verbs
    assert verbs - described == {"lint", "types"}
