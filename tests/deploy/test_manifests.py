import re
import shutil
from pathlib import Path

import pytest
import yaml

from serving.settings import Settings
from tests.deploy import policy, schemas, series
from tests.deploy.conftest import Prove
from tests.deploy.manifests import DEPLOY, KUBERNETES, RENDERED, Manifest, environment, name, of_kind, render, servers
from tests.deploy.mutations import MUTATIONS, mutated
from tests.deploy.tracked import tracked_files

WHOLE = [directory for directory in RENDERED if directory != "overlays/local"]


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Manifest]]:
    return {directory: render(directory) for directory in RENDERED}


def wrong(manifests: list[Manifest]) -> set[str]:
    return {*schemas.violations(manifests, schemas.VERSIONS[-1]), *policy.findings(manifests)}


@pytest.mark.parametrize("directory", RENDERED)
@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_every_object_is_valid_for_kubernetes(rendered: dict[str, list[Manifest]], directory: str, version: str) -> None:
    assert [*schemas.violations(rendered[directory], version)] == []


@pytest.mark.parametrize("directory", [one for one in WHOLE if one != "kserve"])
def test_the_objects_of_an_overlay_are_consistent(rendered: dict[str, list[Manifest]], directory: str) -> None:
    assert policy.findings(rendered[directory]) == []


def test_the_overlay_for_podman_lacks_only_unsupported_objects(rendered: dict[str, list[Manifest]]) -> None:
    assert policy.findings(rendered["overlays/local"]) == [
        "Deployment digits has no PodDisruptionBudget",
        "Deployment digits has no NetworkPolicy",
        "Deployment digits: container digits: port 8001 is bound to the host",
        "Deployment digits: container digits: port 8002 is bound to the host",
    ]


def test_the_runtime_for_kserve_matches_the_deployment(rendered: dict[str, list[Manifest]]) -> None:
    assert policy.findings(rendered["kserve"]) == []
    (ours,), (theirs,) = (
        [container for _, container in servers(rendered[directory])] for directory in ("overlays/dev", "kserve")
    )
    for same in ("resources", "readinessProbe", "livenessProbe", "lifecycle", "volumeMounts", "args"):
        assert theirs[same] == ours[same], same
    assert ours["securityContext"].items() <= theirs["securityContext"].items()
    own = {"DIGITS_MODELS": "/mnt/models"}
    shared = environment(ours, rendered["overlays/dev"])
    del shared["DIGITS_LOG_LEVEL"]  # only in this overlay
    assert environment(theirs, rendered["kserve"]) == shared | own, "kserve/servingruntime.yaml repeats base/settings.env"


def test_a_service_behind_envoy_takes_many_connections_of_one_address(rendered: dict[str, list[Manifest]]) -> None:
    behind = [one for one in rendered.values() if any(name(manifest) == "Deployment digits-envoy" for manifest in one)]
    assert behind
    for manifests in behind:
        for _, container in servers(manifests):
            limit = environment(container, manifests)["DIGITS_MAX_CONNECTIONS_PER_PEER"]
            assert int(limit) >= Settings().max_connections


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_in_a_manifest_is_found(rendered: dict[str, list[Manifest]], mistake: str, prove: Prove) -> None:
    manifests = mutated(rendered["overlays/prod-cpu"], MUTATIONS[mistake])
    found = wrong(manifests) - wrong(rendered["overlays/prod-cpu"])
    assert found
    prove(f"{mistake}: {min(found)}")


def test_every_rule_finds_one_of_at_least_thirty_mistakes(rendered: dict[str, list[Manifest]]) -> None:
    assert len(MUTATIONS) >= 30
    sets = [mutated(rendered["overlays/prod-cpu"], mutation) for mutation in MUTATIONS.values()]
    assert [rule.__name__ for rule in policy.RULES if not any([*rule(manifests)] for manifests in sets)] == []


@pytest.mark.parametrize("overlay", ["staging", "prod-cpu", "prod-gpu"])
def test_an_overlay_sets_the_runbook_of_every_alert(overlay: str, tmp_path: Path) -> None:
    copied = tmp_path / "deploy"
    for file in tracked_files("deploy/kubernetes") + tracked_files("deploy/grafana"):
        target = copied / file.relative_to(DEPLOY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    kustomization = copied / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    own = kustomization.read_text().replace("https://runbooks.example/postal-digits", "https://wiki.example/digits")
    kustomization.write_text(own)
    (rules,) = of_kind(render(kustomization.parent), "PrometheusRule")
    alerts = {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert len(alerts) > 20
    assert alerts == {name: f"https://wiki.example/digits#{name.lower()}" for name in alerts}


def test_the_adapter_reads_existing_metrics() -> None:
    for rule in yaml.safe_load((KUBERNETES / "components/hpa/prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        assert rule["seriesQuery"].partition("{")[0] in series.scraped()


def test_files_of_deploy_name_only_existing_settings_and_metrics() -> None:
    known = {f"DIGITS_{name.upper()}" for name in Settings.model_fields} | {"DIGITS_COMMIT"}
    adapted = {"digits_requests_in_flight"}
    for file in tracked_files("deploy"):
        if file.suffix in (".png", ".json"):
            continue
        text = file.read_text()
        assert set(re.findall(r"\bDIGITS_[A-Z_]+", text)) - known == set(), file
        named = {name for name in re.findall(r"(?<![\w:.-])digits_\w+", text) if not name.endswith("_")}
        assert named - series.metric_names() - adapted == set(), file
