import subprocess
import sys

import pytest

from serving.errors import Code
from serving.telemetry import tracing
from serving.telemetry.tracing import TracingError
from tests.support.calls import TIMEOUT
from tests.support.collector import Collector
from tests.support.service import launch
from tests.support.traced_server import serve_a_seven

pytestmark = pytest.mark.usefixtures("environment")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_nothing_is_traced_unless_the_environment_asks_for_it(
    environment: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert tracing.start() is None


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "otlp,zipkin"},
            "OTEL_TRACES_EXPORTER: unknown exporter zipkin, expected otlp, console or none",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: unsupported protocol http/protobuf, expected grpc",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_.*could not convert.*'soon'"),
    ],
)
def test_an_unsupported_exporter_or_protocol_is_refused_by_name(
    environment: pytest.MonkeyPatch, variables: dict[str, str], complaint: str
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(TracingError, match=complaint):
        tracing.start()


def test_tracing_without_opentelemetry_is_refused_with_the_remedy() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"  # makes the import fail, as if it were not installed
        "from serving.telemetry import tracing\n"
        "try:\n    tracing.start()\nexcept tracing.TracingError as error:\n    print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"OTEL_TRACES_EXPORTER": "otlp"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "pip install '.[tracing]'" in ran.stdout


def test_sampler_name_and_resource_follow_the_environment(environment: pytest.MonkeyPatch, collector: Collector) -> None:
    for variables, name in (
        ({}, "postal-digits"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=desk,site=north"}, "desk"),
        ({"OTEL_SERVICE_NAME": "belt"}, "belt"),
    ):
        for variable, value in variables.items():
            environment.setenv(variable, value)
        traces = tracing.start()
        assert traces is not None
        traces.begin("digits.v1.DigitService", "Recognize", []).end(Code.OK)
        traces.stop(TIMEOUT)
        assert collector.resources[-1]["service.name"] == name
    assert collector.resources[-1]["site"] == "north"
    environment.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traces = tracing.start()
    assert traces is not None
    assert not traces.begin("digits.v1.DigitService", "Recognize", []).sampled
    traces.stop(TIMEOUT)


def test_without_tracing_opentelemetry_is_never_imported() -> None:
    with launch("--drain-seconds", "0", PYTHONPROFILEIMPORTTIME="1") as process:  # every import is a line on stderr
        log = serve_a_seven(process)
    assert "serving.telemetry.tracing" in log
    assert "onnxruntime" in log
    assert "opentelemetry" not in log
    assert "serving.telemetry.spans" not in log


def test_unsupported_tracing_keeps_the_server_from_starting() -> None:
    with launch(OTEL_TRACES_EXPORTER="zipkin") as process:
        _, log = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "digits serve: OTEL_TRACES_EXPORTER: unknown exporter zipkin" in log
