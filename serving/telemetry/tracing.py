"""Starts tracing if OpenTelemetry's own environment variables ask for it. Without them, calls are not traced.

Only `spans` imports OpenTelemetry, and this module imports `spans` only if tracing is on: a service without tracing never
loads OpenTelemetry.
Source: OpenTelemetry specification, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".
"""

import os
from typing import TYPE_CHECKING

from serving.errors import CannotStart

if TYPE_CHECKING:
    from serving.telemetry.spans import Tracing

_EXPORTERS = {"otlp", "console"}
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TracingError(CannotStart):
    """The environment asks for tracing that this service can't provide. The message names the variable and the remedy."""


def start() -> "Tracing | None":
    """Starts tracing for this process. Returns None if the environment asks for no traces.

    Call it once in each serving process, after the last fork: a thread of the process exports the spans.

    Raises:
        TracingError: OpenTelemetry is not installed, or one of its variables has a value that this service does not support.
    """
    exporters = exporters_asked_for()
    if not exporters:
        return None
    try:
        from serving.telemetry.spans import Tracing
    except ImportError as error:
        raise TracingError(
            f"OTEL_TRACES_EXPORTER or an OTLP endpoint asks for traces, but OpenTelemetry is not installed ({error}): "
            "run pip install '.[tracing]' in a checkout, or set OTEL_SDK_DISABLED=true"
        ) from error
    except ValueError as error:  # OpenTelemetry reads OTEL_PROPAGATORS while it is imported
        raise TracingError(f"OTEL_PROPAGATORS: {error}") from error
    try:
        return Tracing(exporters)
    except ValueError as error:  # the message names the variable or its value
        raise TracingError(f"OpenTelemetry's variables (OTEL_...): {error}") from error


def exporters_asked_for() -> set[str]:
    """Returns the exporters that the environment asks for, "otlp" or "console"; empty if tracing is off.

    Raises:
        TracingError: the environment names an exporter or a protocol that this service does not support.
    """
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return set()
    default = "otlp" if any(_variable(name) for name in _ENDPOINTS) else "none"
    exporters = {name.strip() for name in (_variable("OTEL_TRACES_EXPORTER") or default).split(",")} - {"none", ""}
    if exporters - _EXPORTERS:
        unknown = ", ".join(sorted(exporters - _EXPORTERS))
        raise TracingError(f"OTEL_TRACES_EXPORTER: unknown exporter {unknown}, expected otlp, console or none")
    protocol = next((name for name in _PROTOCOLS if _variable(name)), None)
    if "otlp" in exporters and protocol and _variable(protocol) != "grpc":
        raise TracingError(
            f"{protocol}: unsupported protocol {_variable(protocol)}, expected grpc (collectors take it on port 4317)"
        )
    return exporters


def _variable(name: str) -> str:
    """Returns the variable's value. An empty value counts as unset, as the specification requires."""
    return os.environ.get(name, "").strip()
