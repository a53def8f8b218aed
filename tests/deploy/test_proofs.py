from tests.deploy.conftest import NOT_VERIFIED
from tests.deploy.manifests import DEPLOY


def test_the_readme_says_what_is_not_verified_as_the_report_does() -> None:
    told = (DEPLOY / "README.md").read_text().partition("Not verified here:\n\n")[2].split("\n\n")[0]
    assert told.strip().splitlines() == [f"- {what}" for what in NOT_VERIFIED]
