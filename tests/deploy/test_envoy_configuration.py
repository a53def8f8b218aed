import difflib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.pb.digits.v1 import digit_service_pb2
from serving.pb.inference import open_inference_pb2
from serving.settings import Settings
from tests.deploy.envoy import (
    CERTIFICATES,
    COMPONENTS,
    CONFIGURATION,
    CONTAINER,
    DEPLOYMENT,
    MUTUAL_TLS,
    PLAIN,
    Ports,
    bootstrap,
    program,
    write,
)
from tests.deploy.manifests import of_kind, render

VARIANTS = (PLAIN, MUTUAL_TLS)


def cluster(variant: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        one for one in bootstrap(variant)["static_resources"]["clusters"] if one["name"] == "digits"
    )
    return found


def listener(variant: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in bootstrap(variant)["static_resources"]["listeners"] if one["name"] == name)
    return found


def routes(variant: str) -> list[dict[str, Any]]:
    (chain,) = listener(variant, "grpc")["filter_chains"]
    (host,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def route(method: str) -> dict[str, Any]:
    """Returns the route of a method, by its path."""
    for one in routes(PLAIN):
        match = one["match"]
        by_pattern = "safe_regex" in match and re.fullmatch(match["safe_regex"]["regex"], method)
        if match.get("path") == method or by_pattern or ("prefix" in match and method.startswith(match["prefix"])):
            return one
    raise LookupError(method)


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_envoy_accepts_its_configuration_without_a_warning(variant: str, tmp_path: Path) -> None:
    file = write(variant, tmp_path, Ports.free(), names=53, certificates=tmp_path)
    command = [program(), "--mode", "validate", "--config-path", str(file), "--log-level", "warning"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_image_has_the_tested_version_of_envoy() -> None:
    printed = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"/{CONTAINER['image'].rpartition(':v')[2]}/" in printed


def test_both_configurations_differ_only_by_tls() -> None:
    plain, mutual = ((COMPONENTS / variant / "envoy.yaml").read_text().splitlines() for variant in VARIANTS)
    assert [line for line in difflib.ndiff(plain, mutual) if line.startswith("- ")] == []
    with_tls = bootstrap(MUTUAL_TLS)
    (chain,) = with_tls["static_resources"]["listeners"][0]["filter_chains"]
    digits = with_tls["static_resources"]["clusters"][0]
    assert chain.pop("transport_socket")["typed_config"]["require_client_certificate"] is True
    assert digits.pop("transport_socket")["name"] == "envoy.transport_sockets.tls"
    (plain_too,) = digits.pop("transport_socket_matches")
    assert digits["health_checks"][0].pop("transport_socket_match_criteria") == plain_too["match"]
    assert with_tls == bootstrap(PLAIN)


def test_only_reading_methods_are_retried_once_a_call_has_arrived() -> None:
    services = (
        digit_service_pb2.DESCRIPTOR.services_by_name["DigitService"],
        open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    )
    for method in (method for service in services for method in service.methods):
        found = route(f"/{method.containing_service.full_name}/{method.name}")
        if method.name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            assert "direct_response" in found, "the call would reach one pod of several"
            continue
        retried = {"connect-failure", "refused-stream", "reset", "unavailable"}
        if method.name == "ReportTruth":
            retried = {"connect-failure", "refused-stream", "reset-before-request"}
        assert set(found["route"]["retry_policy"]["retry_on"].split(",")) == retried, method.full_name
        # Envoy's default is 15 seconds.
        assert found["route"]["timeout"] == "0s"
        assert found["route"]["max_stream_duration"] == {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"}


def test_health_checks_find_an_unready_replica_in_two_seconds() -> None:
    digits = cluster(PLAIN)
    (check,) = digits["health_checks"]
    assert "http_health_check" in check, "a gRPC check would wait behind calls"
    outliers = digits["outlier_detection"]
    for answers in ("consecutive_5xx", "consecutive_gateway_failure", "success_rate"):
        assert outliers[f"enforcing_{answers}"] == 0, "missed deadlines would count against the replica"
    assert seconds(check["interval"]) + seconds(check["interval_jitter"]) < 1
    assert check["no_traffic_interval"] == check["interval"], "the default before the first call is a minute"
    assert seconds(digits["cluster_type"]["typed_config"]["dns_refresh_rate"]) <= 1


def test_the_ports_of_envoy_match_its_container() -> None:
    declared = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for name, port in declared.items():
        assert listener(PLAIN, name)["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": port}  # noqa: S104
    admin = bootstrap(PLAIN)["admin"]["address"]["socket_address"]
    assert admin["address"] == "127.0.0.1", "the admin interface can stop Envoy"
    assert f"/dev/tcp/127.0.0.1/{admin['port_value']}" in pre_stop()


def test_keepalive_pings_are_as_rare_as_the_service_demands() -> None:
    options = cluster(PLAIN)["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    keepalive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
    sooner = 0.15  # Envoy's jitter
    assert seconds(keepalive["interval"]) * (1 - sooner) > 10


def test_the_drain_timeout_matches_the_service() -> None:
    (chain,) = listener(PLAIN, "grpc")["filter_chains"]
    connection = chain["filters"][0]["typed_config"]
    assert seconds(connection["drain_timeout"]) == Settings.model_fields["max_connection_age_grace_seconds"].default


def test_envoy_drains_before_its_kill_and_refuses_before_its_memory_limit() -> None:
    pause = int(re.search(r"sleep (\d+)", pre_stop())[1])  # type: ignore[index]
    arguments = CONTAINER["args"]
    drain = int(arguments[arguments.index("--drain-time-s") + 1])
    assert drain < pause < DEPLOYMENT["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    heap = bootstrap(PLAIN)["overload_manager"]["resource_monitors"][0]["typed_config"]["max_heap_size_bytes"]
    assert heap == int(CONTAINER["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20 * 3 // 4
    assert arguments[arguments.index("--concurrency") + 1] == CONTAINER["resources"]["limits"]["cpu"]


def pre_stop() -> str:
    command: list[str] = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    return command[-1]


@pytest.mark.parametrize("overlay", ["staging", "prod-cpu", "prod-gpu"])
def test_an_overlay_with_certificates_mounts_them_in_envoy_too(overlay: str) -> None:
    manifests = render(f"overlays/{overlay}")
    (deployment,) = (one for one in of_kind(manifests, "Deployment") if one["metadata"]["name"] == "digits-envoy")
    pod = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted[CERTIFICATES]["secret"]["secretName"] == "digits-tls"
    files = next(
        one["data"]
        for one in of_kind(manifests, "ConfigMap")
        if one["metadata"]["name"] == mounted[CONFIGURATION]["configMap"]["name"]
    )
    assert yaml.safe_load(files["envoy.yaml"]) == bootstrap(MUTUAL_TLS)
    assert files.keys() >= {"certificate.yaml", "authority.yaml"}
