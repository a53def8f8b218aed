from serving.answers.decision import Decision
from serving.pb.digits.v1 import digit_service_pb2 as pb


def test_decisions_have_the_names_and_numbers_of_the_api() -> None:
    assert {f"DECISION_{decision.name}": decision.value for decision in Decision} == dict(pb.Decision.items())
