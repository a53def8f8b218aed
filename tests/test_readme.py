import re
from pathlib import Path

from tests import readme_tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tables_of_settings_and_metrics_are_those_of_the_code() -> None:
    assert readme_tables.written(README) == README, "make readme"


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"\b(BENCH|COMMIT|SETTINGS|METRICS|TODO)\b", README)


def test_every_verb_of_the_makefile_has_a_line_in_its_help_or_is_a_part_of_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert described <= verbs
    assert verbs - described == {"lint", "types"}
