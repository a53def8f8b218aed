import grpc

from serving.errors import QueueFull, Refused, RequestError, request_errors
from serving.telemetry.metrics import Metrics


def test_every_kind_of_error_has_a_status_code_and_a_reason_of_its_own() -> None:
    kinds = {*RequestError.__subclasses__(), *Refused.__subclasses__(), *QueueFull.__subclasses__()} - {Refused}
    assert request_errors() == kinds
    codes = {code.name: code.value[0] for code in grpc.StatusCode}
    assert all(codes[kind.code.name] == kind.code.value for kind in kinds)
    reasons = {kind.reason for kind in kinds}
    assert len(reasons) == len(kinds)
    documented = next(iter(Metrics().rejected_requests.describe())).documentation.rstrip(".").split(": ")[1].split(", ")
    assert set(documented) == reasons | {"cancelled"}, "the help of the metric lists every reason"
