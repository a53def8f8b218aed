"""The command line of the serving half: `digits`, or `python -m serving`."""

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path

import grpc
import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from serving.client import DigitClient
from serving.credentials import CredentialsError, read
from serving.images import ImageError, read_image
from serving.server import PortTaken, serve
from serving.settings import Settings
from serving.tls import channel_credentials
from serving.versions import RepositoryError

IMAGES_PER_CALL = 100


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 it could not be done, 2 it was asked for wrongly."""
    parser = argparse.ArgumentParser(prog="digits", description="Reads handwritten digits for postal sorting.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serving = commands.add_parser(
        "serve",
        help="answer gRPC calls until SIGTERM",
        description="Answers gRPC calls until SIGTERM, then drains. Each flag can also be set in the environment: "
        "--grpc-port as DIGITS_GRPC_PORT, and so on.",
    )
    settings = CliSettingsSource[argparse.ArgumentParser](Settings, root_parser=serving, cli_kebab_case=True)

    recognizing = commands.add_parser("recognize", help="send image files to the service and print what they show")
    recognizing.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a 28x28 PNG or JPEG, or 784 raw bytes; dark on light or light on dark",
    )
    recognizing.add_argument("--address", default="127.0.0.1:8001", help="host:port of the service (default: %(default)s)")
    recognizing.add_argument("--timeout", type=float, default=5.0, help="deadline of a call, seconds (default: %(default)s)")
    recognizing.add_argument("--tls-ca", type=Path, metavar="FILE", help="connect by TLS; authorities to trust, PEM")
    recognizing.add_argument("--tls-certificate", type=Path, metavar="FILE", help="own certificate, for mutual TLS, PEM")
    recognizing.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    recognizing.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the token that the service asks for (default: $DIGITS_TOKEN)"
    )
    recognizing.add_argument("--json", action="store_true", help="one JSON object a line: file, digit, confidence, version")

    options = parser.parse_args(arguments)
    if options.command == "serve":
        return _serve(settings(parsed_args=options))
    if (options.tls_certificate is None) != (options.tls_key is None) or (options.tls_certificate and not options.tls_ca):
        recognizing.error("--tls-certificate and --tls-key are needed together, and with --tls-ca")
    try:
        client = _client(options)
    except CredentialsError as error:
        print(f"digits recognize: {error}", file=sys.stderr)
        return 1
    with client:
        return _recognize(options.files, client, options.address, as_json=options.json)


def _serve(flags: CliSettingsSource[argparse.ArgumentParser]) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        asyncio.run(serve(Settings(_cli_settings_source=flags)))
    except ValidationError as error:
        for mistake in error.errors():
            print(f"digits serve: {_explain(mistake)}", file=sys.stderr)
        return 2
    except (CredentialsError, RepositoryError, PortTaken) as error:
        print(f"digits serve: {error}", file=sys.stderr)
        return 1
    return 0


def _explain(mistake: ErrorDetails) -> str:
    """What is wrong with a setting, under the names that it can be set by."""
    if not mistake["loc"]:  # two settings that contradict each other
        return mistake["msg"]
    name = str(mistake["loc"][0])
    return f"--{name.replace('_', '-')} (DIGITS_{name.upper()}): {mistake['msg']}, not {mistake['input']!r}"


def _client(options: argparse.Namespace) -> DigitClient:
    """A connection as the flags ask for it. Raises CredentialsError when a file can't be used."""
    credentials = None
    if options.tls_ca:
        credentials = channel_credentials(options.tls_ca, options.tls_certificate, options.tls_key)
    token = (read(options.token_file) if options.token_file else os.environb.get(b"DIGITS_TOKEN", b"")).strip()
    if options.token_file and not token:
        raise CredentialsError(f"{options.token_file} is empty: it should hold a token")
    if not (token.isascii() and token.decode("ascii").isprintable()):
        raise CredentialsError(f"{options.token_file or 'DIGITS_TOKEN'} is no token: that is one line of ASCII")
    return DigitClient(options.address, options.timeout, credentials, token.decode() or None)


def _recognize(files: list[Path], client: DigitClient, address: str, *, as_json: bool) -> int:
    """Sends what can be read of `files`, prints a line for each, and says on stderr what could not be."""
    failed = False
    readable = []
    for file in files:
        try:
            readable.append((file, read_image(file)))
        except ImageError as error:
            print(f"digits recognize: {file}: {error}", file=sys.stderr)
            failed = True
    for start in range(0, len(readable), IMAGES_PER_CALL):
        part = readable[start : start + IMAGES_PER_CALL]
        try:
            recognitions = client.recognize_batch(np.stack([image for _, image in part]))
        except grpc.RpcError as error:
            print(f"digits recognize: {address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
        for (file, _), shown in zip(part, recognitions, strict=True):
            if as_json:
                answer = {"file": str(file), "digit": shown.digit, "confidence": round(shown.confidence, 6)}
                print(json.dumps({**answer, "version": shown.model_version}))
            else:
                print(f"{file}  {shown.digit}  {shown.confidence:.4f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
