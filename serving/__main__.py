"""The command line of the serving half: `digits`, or `python -m serving`.

Each command imports what it needs when it runs, so that none waits for another's libraries; and so does `serve` with several
workers, whose supervisor is to hold none of theirs.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.client import DigitClient
    from serving.settings import Settings

IMAGES_PER_CALL = 100

_SHADES = " .:-=+*#%@"  # of ink in a terminal, none to full

_COMMANDS = """\
commands:
  serve        answer gRPC calls until SIGTERM
  check        say what is wrong with a configuration and its models, without serving
  recognize    send image files to the service and print what they show
  frame        show how an image file is framed, as the network sees it
  loadtest     measure how much a service carries, and how fast
"""

_SERVE = "Answers gRPC calls until it is told to stop, then drains."

_SERVE_MANUAL = """\
where settings come from:
  A flag goes before the environment, that before the file, and the file before
  the default. In the environment --grpc-port is DIGITS_GRPC_PORT; in the TOML
  file that --config or DIGITS_CONFIG names it is grpc_port = 8001. An empty
  variable counts as not set. All mistakes are named at once, unknown flags and
  keys among them; unknown DIGITS_ variables are only warned of, as Kubernetes
  sets some for a Service of that name. Relative paths begin at the working
  directory. `digits check` takes the same settings and says what is wrong with
  them and with the models, without serving.

ports:
  --grpc-port      gRPC: the service, its health and its reflection
  --metrics-port   HTTP: /metrics for Prometheus; /healthz, 200 while it lives;
                   /readyz, 200 while it wants traffic, else 503

workers:
  With --workers above 1, that many processes share the gRPC port, each new
  connection going to one of them, and a supervisor restarts those that die.
  Their metrics are added up: in /dev/shm, else $TMPDIR, or where
  PROMETHEUS_MULTIPROC_DIR says.

signals:
  SIGTERM          drain: say not ready, go on answering for --drain-seconds,
                   then finish what is in flight; a second one changes nothing
  SIGINT           the same without the drain; while stopping, it cuts it short

traces:
  As OpenTelemetry's own variables say, such as
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317; off by default.

exit status:
  0  stopped, as it was told to
  1  it could not start (a model, a port, a file), or a run or worker never ended
  2  the settings can't be used
"""

_CHECK = "Says what `digits serve` would find wrong with a configuration and its models, all at once, and serves nothing."

_CHECK_MANUAL = """\
It takes the settings of `digits serve`, from the same places; its --help is
the manual. Every version of every model is loaded, those with a role warmed up
as well. No port is bound.

exit status:
  0  all is well
  1  something is not, as stderr says
  2  the settings can't be used
"""

_LOADTEST_MANUAL = """\
what is measured:
  A closed loop (--callers) sends a caller's next call when the answer to the
  last is there: how fast the service is when nobody is in a hurry. An open
  loop (--rate) sends calls when they are due, as mail comes: how late they are
  counts from then, also when the service stands still and nothing is sent.
  --find-knee doubles the rate until an objective breaks, and then closes in
  on the highest that keeps it: what one replica carries. A rate that breaks
  one is tried twice, and counts as it was then. Where calls of an open loop are
  sent late, which adds to their times, stderr says so. calls/s is of the right
  answers that came while it was measured, whenever their calls were due.

objectives:
  p50=5ms, p99=20ms, p99.9=0.1s: so many percent of the answers come within
  that. errors=0.1%: at most so many calls end without a right answer. The
  images are samples of all ten digits, and an answer is right that names them.

Use a machine other than the service's, and as many --processes as it has
cores: what the test takes, the service lacks. Do not use a service whose
counts of digits, drift and captured images are those of real mail.

exit status:
  0  measured, and every objective kept
  1  it could not be measured
  2  the flags can't be used
  3  an objective was missed
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 it could not be done, 2 it was asked for wrongly."""
    from serving.telemetry.multiprocess_metrics import count_alone

    serve = partial(_serve, metrics_directory=count_alone())
    commands: dict[str, Callable[[list[str]], int]] = {
        "serve": serve,
        "check": _check,
        "recognize": _recognize,
        "frame": _frame,
        "loadtest": _loadtest,
    }
    parser = argparse.ArgumentParser(
        prog="digits",
        description="Reads handwritten digits for postal sorting.",
        epilog=_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND", help="see below; COMMAND --help says more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    options = parser.parse_args(arguments)
    try:
        status = commands[options.command](options.arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `digits frame photo.jpg | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes, at the end
        return 1


def _serve(arguments: list[str], metrics_directory: str) -> int:
    settings = _settings("serve", _SERVE, _SERVE_MANUAL, arguments)
    if settings is None:
        return 2

    from serving.cli import load_settings
    from serving.errors import CannotStart
    from serving.telemetry import logs

    logs.configure(settings.log_format, settings.log_level)
    log = logging.getLogger("serving")
    unknown = load_settings.unknown_variables()
    if unknown:
        logs.log_event(
            log, logging.WARNING, "unknown_variables", f"no such settings: {', '.join(unknown)}", variables=unknown
        )

    try:
        return _supervise(settings, metrics_directory) if settings.workers > 1 else _serve_alone(settings)
    except CannotStart as error:
        if settings.log_format == "json":
            logs.log_event(log, logging.CRITICAL, "not_started", str(error))
        else:
            print(f"digits serve: {error}", file=sys.stderr)
        return 1


def _serve_alone(settings: "Settings") -> int:
    """The exit status. Raises CannotStart."""
    import asyncio

    from serving.process.run import serve

    asyncio.run(serve(settings))
    return 0


def _supervise(settings: "Settings", metrics_directory: str) -> int:
    """Likewise, with several workers, who count in `metrics_directory` if it is named."""
    import asyncio

    from serving.process.supervisor import supervise

    return asyncio.run(supervise(settings, metrics_directory))


def _check(arguments: list[str]) -> int:
    settings = _settings("check", _CHECK, _CHECK_MANUAL, arguments)
    if settings is None:
        return 2

    from serving.cli import check

    findings = check.check(settings)
    print(findings.table())
    for warning in findings.warnings:
        print(f"digits check: warning: {warning}", file=sys.stderr)
    for mistake in findings.mistakes:
        print(f"digits check: {mistake}", file=sys.stderr)
    return int(bool(findings.mistakes))


def _settings(command: str, description: str, manual: str, arguments: list[str]) -> "Settings | None":
    """The settings that a command is given and finds; None when they can't be used, after saying why."""
    from serving.cli import load_settings

    parser = argparse.ArgumentParser(
        prog=f"digits {command}",
        usage=f"digits {command} [SETTING...]",  # all of them follow, one by one
        description=description,
        epilog=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a prefix that is clear today may not be tomorrow
    )
    load_settings.add_flags(parser)
    options, unknown = parser.parse_known_args(arguments)
    try:
        return load_settings.read(load_settings.given(options), unknown)
    except load_settings.SettingsError as error:
        for mistake in error.mistakes:
            print(f"digits {command}: {mistake}", file=sys.stderr)
        return None


def _recognize(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="digits recognize", description="Sends image files to the service and prints what they show."
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a PNG or JPEG of one digit on paper, dark on light or light on dark; one of 28x28, or 784 raw bytes, is taken "
        "to be framed already",
    )
    _add_connection(parser)
    parser.add_argument(
        "--target-error-rate",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of wrong answers to bear among those accepted, such as 0.005 (default: the server's own)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: file, digit, confidence, decision, version"
    )
    options = _parsed(parser, arguments)

    from serving.security.credential_files import CredentialsError

    try:
        client = _client(options)
    except CredentialsError as error:
        print(f"digits recognize: {error}", file=sys.stderr)
        return 1
    with client:
        return _send(options.files, client, options.address, options.target_error_rate, as_json=options.json)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    """The flags by which a command reaches the service."""
    parser.add_argument(
        "--address",
        default="127.0.0.1:8001",
        help="host:port of the service; of several servers, dns:///NAME:PORT (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=5.0, help="deadline of a call, seconds (default: %(default)s)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="connect by TLS; authorities to trust, PEM")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="own certificate, for mutual TLS, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the token that the service asks for (default: $DIGITS_TOKEN)"
    )


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The flags, those of `_add_connection` among them; ends the program when they can't be used."""
    options = parser.parse_args(arguments)
    if (options.tls_certificate is None) != (options.tls_key is None) or (options.tls_certificate and not options.tls_ca):
        parser.error("--tls-certificate and --tls-key are needed together, and with --tls-ca")
    return options


def _client(options: argparse.Namespace) -> "DigitClient":
    """A connection as the flags ask for it. Raises CredentialsError when a file can't be used."""
    from serving.client import DigitClient
    from serving.security.tls import channel_credentials

    credentials = None
    if options.tls_ca:
        credentials = channel_credentials(options.tls_ca, options.tls_certificate, options.tls_key)
    return DigitClient(options.address, options.timeout, credentials, _token(options))


def _token(options: argparse.Namespace) -> str | None:
    """What the service is to know the caller by. Raises CredentialsError."""
    from serving.security.credential_files import CredentialsError, read

    token = (read(options.token_file) if options.token_file else os.environb.get(b"DIGITS_TOKEN", b"")).strip()
    if options.token_file and not token:
        raise CredentialsError(f"{options.token_file} is empty: it should hold a token")
    if not (token.isascii() and token.decode("ascii").isprintable()):
        raise CredentialsError(f"{options.token_file or 'DIGITS_TOKEN'} is no token: that is one line of ASCII")
    return token.decode() or None


def _send(files: list[Path], client: "DigitClient", address: str, target_error_rate: float, *, as_json: bool) -> int:
    """Sends what can be read of `files`, prints a line for each, and says on stderr what could not be."""
    import grpc
    import numpy as np

    from serving.cli.framed_files import read_framed
    from serving.client.image_files import ImageError

    failed = False
    readable = []
    for file in files:
        try:
            readable.append((file, read_framed(file)))
        except ImageError as error:
            print(f"digits recognize: {file}: {error}", file=sys.stderr)
            failed = True
    for start in range(0, len(readable), IMAGES_PER_CALL):
        part = readable[start : start + IMAGES_PER_CALL]
        try:
            images = np.stack([image for _, image in part])
            recognitions = client.recognize_batch(images, target_error_rate=target_error_rate)
        except grpc.RpcError as error:
            print(f"digits recognize: {address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
        for (file, _), shown in zip(part, recognitions, strict=True):
            if as_json:
                answer = {"file": str(file), "digit": shown.digit, "confidence": round(shown.confidence, 6)}
                print(json.dumps({**answer, "decision": shown.decision.name.lower(), "version": shown.model_version}))
            else:
                print(f"{file}  {shown.digit}  {shown.confidence:.4f}  {shown.decision.name.lower()}")
    return int(failed)


def _loadtest(arguments: list[str]) -> int:
    try:
        from serving.loadtest import command
    except ModuleNotFoundError as error:
        print(f"digits loadtest: {error.name} is missing: pip install 'postal-digits[loadtest]'", file=sys.stderr)
        return 1
    from serving.loadtest.calls import GrpcTarget
    from serving.security.credential_files import CredentialsError
    from serving.security.tls import channel_credentials

    parser = argparse.ArgumentParser(
        prog="digits loadtest",
        description="Measures how much a service carries, and how fast, from outside.",
        epilog=_LOADTEST_MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_connection(parser)
    command.add_arguments(parser)
    options = _parsed(parser, arguments)
    plan = command.read_plan(parser, options)
    try:
        token = _token(options)
        if options.tls_ca:  # rather than to find out in each process of the test
            channel_credentials(options.tls_ca, options.tls_certificate, options.tls_key)
    except CredentialsError as error:
        print(f"digits loadtest: {error}", file=sys.stderr)
        return 1
    target = GrpcTarget(options.address, options.tls_ca, options.tls_certificate, options.tls_key, token)
    return command.run(plan, target, options)


def _frame(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="digits frame", description="Shows how the digit of an image file is framed, as the network sees it."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="as `digits recognize` takes it")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write it there too, 28x28, 0 paper, 255 ink")
    options = parser.parse_args(arguments)

    from PIL import Image

    from serving.cli.framed_files import read_framed
    from serving.client.image_files import ImageError

    try:
        image = read_framed(options.file)
        if options.out:
            Image.fromarray(image).save(options.out, "PNG")
    except (ImageError, OSError) as error:
        print(f"digits frame: {options.file}: {error}", file=sys.stderr)
        return 1
    for row in image:
        print("".join(_SHADES[level * len(_SHADES) // 256] * 2 for level in row.tolist()).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
