"""The compose file, compared with the code and with the files that it mounts.

Its images need a registry, so the tests don't run it. test_image.py runs the service's own image.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import Settings
from tests.deploy.pods import ENDING_SECONDS

COMPOSE = Path(__file__).parents[2] / "deploy" / "docker" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Returns the services of the compose file, by name."""
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Returns the files and directories of this repository that a service mounts, by their path in the container."""
    split = [volume.split(":") for volume in service.get("volumes", ()) if volume.startswith(".")]
    assert all(flags == ["ro"] for _, _, *flags in split)
    return {target: COMPOSE.parent / source for source, target, _ in split}


def flag(service: dict[str, Any], name: str) -> str:
    """Returns the value of a flag in the command of a service."""
    (value,) = [word.partition("=")[2] for word in service["command"] if word.startswith(f"{name}=")]
    return str(value)


def test_ports_are_published_on_the_loopback_address_only(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_third_party_images_are_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values() if "build" not in service]
    assert len(images) == 3
    assert all(re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image) for image in images)


def test_every_mounted_file_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        assert [path for path in mounts(service).values() if not path.exists()] == []


def test_every_service_is_hardened_and_has_limits(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"cpus", "mem_limit"} <= service.keys()


def test_build_ports_and_grace_period_match_the_code(services: dict[str, Any]) -> None:
    digits = services["digits"]
    root = COMPOSE.parent / digits["build"]["context"]
    assert digits["image"] == f"postal-digits:{tomllib.loads((root / 'pyproject.toml').read_text())['project']['version']}"
    assert (root / digits["build"]["dockerfile"]).samefile(COMPOSE.with_name("Dockerfile"))
    environment = {name.removeprefix("DIGITS_").lower(): value for name, value in digits["environment"].items()}
    settings = Settings(**environment)
    ports = (settings.grpc_port, settings.metrics_port)
    assert digits["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    grace = float(digits["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_seconds + settings.grace_seconds + ENDING_SECONDS
    *_, script = digits["healthcheck"]["test"]
    assert f"COPY deploy/docker/{Path(script).name} {script}\n" in COMPOSE.with_name("Dockerfile").read_text()


def test_prometheus_has_its_target_rules_and_alertmanager(services: dict[str, Any]) -> None:
    prometheus = mounts(services["prometheus"])
    file = Path(flag(services["prometheus"], "--config.file"))
    config = yaml.safe_load(prometheus[str(file)].read_text())
    targets = [
        target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    ]
    assert f"digits:{Settings.model_fields['metrics_port'].default}" in targets
    assert {str(file.parent / rules) for rules in config["rule_files"]} <= prometheus.keys()
    (alerting,) = config["alerting"]["alertmanagers"]
    assert alerting["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert flag(services["alertmanager"], "--config.file") in mounts(services["alertmanager"])


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, Any]) -> None:
    grafana = mounts(services["grafana"])
    provisioning = grafana["/etc/grafana/provisioning"]
    (datasources,) = (provisioning / "datasources").iterdir()
    (dashboards,) = (provisioning / "dashboards").iterdir()
    sources = yaml.safe_load(datasources.read_text())
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]
    prometheus = yaml.safe_load((COMPOSE.parents[1] / "prometheus" / "prometheus.yaml").read_text())
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    boards = yaml.safe_load(dashboards.read_text())
    (provider,) = boards["providers"]
    assert str(Path(provider["options"]["path"]) / "digits.json") in grafana
