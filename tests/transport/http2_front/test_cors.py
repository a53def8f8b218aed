"""Which web pages of other origins may call: those that the operator lists, and no page by default."""

import pytest
from pydantic import ValidationError

from serving.call import Call
from serving.errors import InvalidRequest
from serving.settings import Settings
from serving.transport.routes import Unary
from tests.support.http2_client import Response, http2_client
from tests.transport.http2_front.conftest import StartFront

CALL = "/test.Echo/Call"
DESK, OTHER = "https://desk.example", "https://other.example"
LIST = f" {DESK}, http://127.0.0.1:3000 "


async def echo(message: bytes, call: Call) -> bytes:
    if message == b"bad":
        raise InvalidRequest("bad")
    return message


async def request(port: int, headers: dict[str, str], body: bytes = b"") -> Response:
    async with http2_client(port) as client:
        return await client.call(CALL, body, **headers)


def preflight(origin: str) -> dict[str, str]:
    """Returns the headers of a preflight, as a browser sends it."""
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    return {"method": "OPTIONS", "origin": origin, **asked}


@pytest.mark.parametrize("origin", [DESK, "http://127.0.0.1:3000"])
async def test_a_listed_page_may_call(start_front: StartFront, origin: str) -> None:
    port = await start_front({CALL: Unary(echo)}, cors_origins=LIST)
    answer = (await request(port, preflight(origin))).headers
    assert (answer[":status"], answer["access-control-allow-origin"], answer["vary"]) == ("204", origin, "origin")
    assert answer["access-control-allow-methods"] == "POST"
    allowed = answer["access-control-allow-headers"].split(", ")
    assert {"content-type", "authorization", "connect-timeout-ms", "grpc-timeout", "x-grpc-web"} <= set(allowed)


@pytest.mark.parametrize("origins", [LIST, None, ""])
@pytest.mark.parametrize("origin", [OTHER, "null", DESK + ".evil.example", DESK.upper(), "http://desk.example"])
async def test_another_page_may_not(start_front: StartFront, origins: str | None, origin: str) -> None:
    port = await start_front({CALL: Unary(echo)}, cors_origins=origins)
    asked = await request(port, preflight(origin))
    called = await request(port, {"content_type": "application/proto", "origin": origin}, b"seven")
    assert (asked.headers[":status"], called.headers[":status"]) == ("405", "200")
    assert not [name for name in asked.headers | called.headers if name.startswith("access-control-")]


async def test_by_default_no_page_may_call(start_front: StartFront) -> None:
    port = await start_front({CALL: Unary(echo)})
    assert (await request(port, preflight(DESK))).headers[":status"] == "405"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/proto", b"seven"),
        ("application/proto", b"bad"),
        ("application/grpc-web", b"\0\0\0\0\5seven"),
        ("application/grpc-web-text", b"AAAAAANiYWQ="),  # "bad"
    ],
)
async def test_answers_and_errors_show_a_listed_page_their_headers(
    start_front: StartFront, content_type: str, body: bytes
) -> None:
    port = await start_front({CALL: Unary(echo)}, cors_origins=LIST)
    answer = (await request(port, {"content_type": content_type, "origin": DESK}, body)).headers
    assert (answer["access-control-allow-origin"], answer["vary"]) == (DESK, "origin")
    shown = answer["access-control-expose-headers"].split(", ")
    assert {"grpc-status", "grpc-message", "retry-after"} <= set(shown)


async def test_options_without_a_preflights_question_are_refused(start_front: StartFront) -> None:
    port = await start_front({CALL: Unary(echo)}, cors_origins=LIST)
    assert (await request(port, {"method": "OPTIONS", "origin": DESK})).headers[":status"] == "405"


@pytest.mark.parametrize("origins", ["*", "https://*.example", "desk.example", DESK + "/", f"{DESK},null", "https://a b"])
def test_a_setting_that_names_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match=r"expected scheme and host, such as https://desk\.example"):
        Settings(cors_origins=origins)
