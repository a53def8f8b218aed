"""Whether calls are traced: as OpenTelemetry's own environment variables say, and by default they are not.

Then nothing of OpenTelemetry is imported: spans.py, which is all that does, is imported here once it is asked for.
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
    """Traces are asked for in a way that can't be had; the message says which, and what to do."""


def start() -> "Tracing | None":
    """What traces the calls of this process, or None when no traces are asked for.

    Called once in each process that serves, and never before it forks: the spans leave it from a thread of its own.

    Raises:
        TracingError: the environment asks for what is not installed, or for what there is not.
    """
    exporters = exporters_asked_for()
    if not exporters:
        return None
    try:
        from serving.telemetry.spans import Tracing
    except ImportError as error:
        raise TracingError(
            f"OTEL_TRACES_EXPORTER or an OTLP endpoint asks for traces, which need OpenTelemetry ({error}): "
            "pip install 'postal-digits[tracing]', or OTEL_SDK_DISABLED=true"
        ) from error
    except ValueError as error:  # OpenTelemetry reads OTEL_PROPAGATORS as it is imported
        raise TracingError(f"OTEL_PROPAGATORS: {error}") from error
    try:
        return Tracing(exporters)
    except ValueError as error:  # its message names the variable or its value
        raise TracingError(f"OpenTelemetry's variables (OTEL_...): {error}") from error


def exporters_asked_for() -> set[str]:
    """The exporters that the environment names, "otlp" or "console"; none when tracing is off.

    Raises:
        TracingError: it asks for what there is not.
    """
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return set()
    by_default = "otlp" if any(_variable(name) for name in _ENDPOINTS) else "none"
    exporters = {name.strip() for name in (_variable("OTEL_TRACES_EXPORTER") or by_default).split(",")} - {"none", ""}
    if exporters - _EXPORTERS:
        unknown = ", ".join(sorted(exporters - _EXPORTERS))
        raise TracingError(f"OTEL_TRACES_EXPORTER: no exporter {unknown} here, only otlp, console and none")
    protocol = next((name for name in _PROTOCOLS if _variable(name)), None)
    if "otlp" in exporters and protocol and _variable(protocol) != "grpc":
        raise TracingError(f"{protocol}: no {_variable(protocol)} here, only grpc (a collector takes it on port 4317)")
    return exporters


def _variable(name: str) -> str:
    """The variable's value; an empty one counts as not set, as the specification wants it."""
    return os.environ.get(name, "").strip()
