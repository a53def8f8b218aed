import logging

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
