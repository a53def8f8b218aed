"""deploy/SECURITY.md names settings and metrics that exist, with the defaults that it states."""

import re
from pathlib import Path

import pytest

from serving import readme_tables
from tests.support.service import ROOT

pytestmark = pytest.mark.harm
PAGE = (ROOT / "deploy" / "SECURITY.md").read_text()
TABLES = Path(readme_tables.README).read_text()


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z][a-z-]+)[` ]", PAGE))))
def test_a_setting_of_the_security_page_exists(flag: str) -> None:
    assert f"| `{flag}` |" in TABLES


@pytest.mark.parametrize("metric", sorted(set(re.findall(r"`(digits_[a-z_]+)[`{]", PAGE))))
def test_a_metric_of_the_security_page_exists(metric: str) -> None:
    assert f"| `{metric}` |" in TABLES


def test_every_link_of_the_security_page_leads_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "deploy" / target).exists(), target
