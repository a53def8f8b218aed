import re

import pytest
import yaml

from serving.settings import Settings
from tests import readme_tables
from tests.deploy import policy, schemas
from tests.deploy.conftest import Prove
from tests.deploy.manifests import KUBERNETES, RENDERED, Manifest, environment, render, servers
from tests.deploy.mutations import MUTATIONS, mutated
from tests.deploy.tracked import tracked_files

METRICS = {row.split("`")[1] for row in readme_tables.metrics()}
SERIES = METRICS | {f"{name}_{part}" for name in METRICS for part in ("bucket", "sum", "count")}
WHOLE = [directory for directory in RENDERED if directory != "overlays/local"]


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Manifest]]:
    return {directory: render(directory) for directory in RENDERED}


def wrong(manifests: list[Manifest]) -> set[str]:
    return {*schemas.violations(manifests, schemas.VERSIONS[-1]), *policy.findings(manifests)}


@pytest.mark.parametrize("directory", RENDERED)
@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_every_object_is_one_that_kubernetes_takes(
    rendered: dict[str, list[Manifest]], directory: str, version: str
) -> None:
    assert [*schemas.violations(rendered[directory], version)] == []


@pytest.mark.parametrize("directory", [one for one in WHOLE if one != "kserve"])
def test_what_the_objects_of_an_overlay_say_of_each_other_is_so(rendered: dict[str, list[Manifest]], directory: str) -> None:
    assert policy.findings(rendered[directory]) == []


def test_the_overlay_for_podman_lacks_only_what_podman_does_not_know(rendered: dict[str, list[Manifest]]) -> None:
    assert policy.findings(rendered["overlays/local"]) == [
        "no PodDisruptionBudget is there for Deployment digits",
        "no NetworkPolicy is there for Deployment digits",
        "Deployment digits: container digits: port 8001 is the host's",
        "Deployment digits: container digits: port 8002 is the host's",
    ]


def test_the_runtime_for_kserve_is_what_the_deployment_is(rendered: dict[str, list[Manifest]]) -> None:
    assert policy.findings(rendered["kserve"]) == []
    (ours,), (theirs,) = (
        [container for _, container in servers(rendered[directory])] for directory in ("overlays/dev", "kserve")
    )
    for same in ("resources", "readinessProbe", "livenessProbe", "lifecycle", "volumeMounts", "args"):
        assert theirs[same] == ours[same], same
    assert ours["securityContext"].items() <= theirs["securityContext"].items()
    own = {"DIGITS_MODELS": "/mnt/models"}
    shared = environment(ours, rendered["overlays/dev"])
    del shared["DIGITS_LOG_LEVEL"]  # that overlay's own
    assert environment(theirs, rendered["kserve"]) == shared | own, "kserve/servingruntime.yaml has base/settings.env, too"


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_in_a_manifest_is_found(rendered: dict[str, list[Manifest]], mistake: str, prove: Prove) -> None:
    manifests = mutated(rendered["overlays/prod-cpu"], MUTATIONS[mistake])
    found = wrong(manifests) - wrong(rendered["overlays/prod-cpu"])
    assert found
    prove(f"{mistake}: {min(found)}")


def test_every_rule_finds_a_mistake_and_there_are_thirty_at_least(rendered: dict[str, list[Manifest]]) -> None:
    assert len(MUTATIONS) >= 30
    sets = [mutated(rendered["overlays/prod-cpu"], mutation) for mutation in MUTATIONS.values()]
    assert [rule.__name__ for rule in policy.RULES if not any([*rule(manifests)] for manifests in sets)] == []


def test_what_is_scaled_by_is_made_of_metrics_that_there_are() -> None:
    for rule in yaml.safe_load((KUBERNETES / "components/hpa/prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        assert rule["seriesQuery"].partition("{")[0] in SERIES


def test_all_that_is_deployed_speaks_of_settings_and_metrics_that_there_are() -> None:
    known = {f"DIGITS_{name.upper()}" for name in Settings.model_fields} | {"DIGITS_COMMIT"}
    adapted = {"digits_requests_in_flight"}
    for file in tracked_files("deploy"):
        if file.suffix in (".png", ".json"):
            continue
        text = file.read_text()
        assert set(re.findall(r"\bDIGITS_[A-Z_]+", text)) - known == set(), file
        named = {name for name in re.findall(r"(?<![\w:.-])digits_\w+", text) if not name.endswith("_")}
        assert named - SERIES - adapted == set(), file
