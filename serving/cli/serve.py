"""`digits serve`: answers gRPC calls until it receives a signal."""

import logging
import resource
import sys

from serving.cli import load_settings
from serving.errors import CannotStart
from serving.settings import Settings
from serving.telemetry import logs
from serving.telemetry.log_text import clean

_OPEN_FILES = 65_536

_DESCRIPTION = "Answers gRPC calls until SIGTERM or SIGINT, then drains and exits."

_MANUAL = """\
where settings come from:
  In this order: flags, the environment, the TOML file, the default. The flag
  --grpc-port is DIGITS_GRPC_PORT in the environment, and grpc_port = 8001 in
  the TOML file that --config or DIGITS_CONFIG names. An empty variable counts
  as not set. All mistakes are reported at once, with unknown flags and keys.
  An unknown DIGITS_ variable is only a warning: Kubernetes sets variables of
  this form for a Service called digits. Relative paths start at the working
  directory. `digits check` takes the same settings and tests them and the
  models without serving.

ports:
  --grpc-port      gRPC: the service, its health and its reflection
  --metrics-port   HTTP: /metrics for Prometheus; /healthz, 200 while the
                   process is alive; /readyz, 200 while it accepts traffic,
                   else 503

workers:
  With --workers above 1, several processes share the gRPC port. The kernel
  gives each new connection to one of them. A supervisor restarts workers that
  die, and adds up their metrics. The metrics' files are in the directory
  PROMETHEUS_MULTIPROC_DIR, else in /dev/shm, else in $TMPDIR.

signals:
  SIGTERM          drain: report not ready, answer for --drain-seconds, then
                   finish the calls in flight; a second SIGTERM has no effect
  SIGINT           stop without the drain; during a drain, cut it short

traces:
  Configured by OpenTelemetry's own variables, such as
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317. Off by default.

examples:
  digits serve
  digits serve --host 0.0.0.0 --workers 4 --log-format json
  DIGITS_GRPC_PORT=9001 digits serve --config digits.toml

exit status:
  0  stopped by a signal
  1  could not start (a model, a port, a file), or a model run or a worker did
     not end in time
  2  invalid settings
"""


def run(arguments: list[str], metrics_directory: str) -> int:
    """Runs the command.

    Args:
        arguments: the flags.
        metrics_directory: directory for the metrics' files of several workers; empty chooses one.

    Returns:
        The exit status.
    """
    settings = load_settings.parse_command_line("serve", _DESCRIPTION, _MANUAL, arguments)
    if settings is None:
        return 2

    _raise_file_limit()
    logs.configure(settings.log_format, settings.log_level)
    log = logging.getLogger("serving")
    unknown = load_settings.unknown_variables()
    if unknown:
        logs.log_event(
            log, logging.WARNING, "unknown_variables", f"unknown settings: {', '.join(unknown)}", variables=unknown
        )

    try:
        return _supervise(settings, metrics_directory) if settings.workers > 1 else _serve_alone(settings)
    except CannotStart as error:
        if settings.log_format == "json":
            logs.log_event(log, logging.CRITICAL, "not_started", str(error))
        else:
            logs.flush()
            print(f"digits serve: {clean(str(error), one_line=False)}", file=sys.stderr)
        return 1


def _raise_file_limit() -> None:
    """Raises the limit of open files, within what the system allows.

    Shells set 1,024, which the connections of callers alone may use up. Probes would then find no socket.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))


def _serve_alone(settings: Settings) -> int:
    """Serves in this process; returns the exit status. Raises CannotStart."""
    import asyncio

    from serving.process.run import serve

    asyncio.run(serve(settings))
    return 0


def _supervise(settings: Settings, metrics_directory: str) -> int:
    """Serves with several workers; returns the exit status. Raises CannotStart."""
    import asyncio

    from serving.process.supervisor import supervise

    return asyncio.run(supervise(settings, metrics_directory))
