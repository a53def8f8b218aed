import logging
from pathlib import Path
from typing import Any

import pytest

from serving.build_info import commit, version
from serving.process.startup_log import ModelDescription, log_started
from serving.settings import Settings


def test_the_started_event_names_the_addresses_the_model_and_the_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_started(Settings(host="::1", workers=2, log_format="json"), ModelDescription("model 7", "7"), 1, 2)
    (record,) = caplog.records
    assert record.getMessage() == "model 7 in each of 2 workers, [::1]:1 for gRPC, http://[::1]:2/metrics"
    assert record.__dict__["event"] == "started"
    fields = record.__dict__["fields"]
    assert (fields["version"], fields["service_version"], fields["commit"]) == ("7", version(), commit())
    assert (fields["grpc_address"], fields["metrics_address"], fields["workers"]) == ("[::1]:1", "[::1]:2", 2)


PAIR = {"tls_certificate": Path("server.pem"), "tls_key": Path("server.key")}


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, ""),
        (PAIR, "--tls-ca CA.pem"),
        (
            {**PAIR, "tls_client_ca": Path("ca.pem")},
            "--tls-ca CA.pem --tls-certificate CLIENT.pem --tls-key CLIENT_KEY.pem",
        ),
        ({"tokens": Path("tokens.toml")}, "--token-file TOKEN"),
        ({**PAIR, "tokens": Path("tokens.toml")}, "--tls-ca CA.pem --token-file TOKEN"),
    ],
    ids=["open", "tls", "mutual tls", "tokens", "tls and tokens"],
)
def test_the_first_command_has_the_flags_that_the_service_needs(
    settings: dict[str, Any], flags: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log_started(Settings(host="127.0.0.1", log_format="text", **settings), ModelDescription("model 7", "7"), 1, 2)
    _, arguments = caplog.messages[-1].split(" recognize ")
    assert arguments.split(" ")[:-1] == ["--address", "127.0.0.1:1", *flags.split()]
