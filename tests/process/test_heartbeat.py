import asyncio
import threading
from urllib.error import HTTPError
from urllib.request import urlopen

from serving.process import heartbeat
from serving.process.heartbeat import Heartbeat
from serving.process.server import Server
from tests.support.calls import TIMEOUT


async def test_the_heartbeat_of_a_loop_is_lost_while_it_stands_still() -> None:
    own = Heartbeat()
    assert await asyncio.to_thread(own.lost) == ""
    reported: list[str] = []
    asking = threading.Thread(target=lambda: reported.append(own.lost()))
    asking.start()
    asking.join(TIMEOUT)  # this blocks the event loop
    assert reported == [f"the event loop has not turned for {heartbeat._TURN_SECONDS:g} s"]
    assert await asyncio.to_thread(own.lost) == "", "it turns again"


def test_the_heartbeat_of_a_loop_that_has_ended_is_lost() -> None:
    async def make() -> Heartbeat:
        return Heartbeat()

    assert asyncio.run(make()).lost() == "the event loop has ended"


async def test_a_server_that_stands_still_fails_its_liveness_probe(server: Server) -> None:
    found: list[int] = []

    def probe() -> None:
        try:
            with urlopen(f"http://127.0.0.1:{server.metrics_port}/healthz", timeout=TIMEOUT) as answer:
                found.append(answer.status)
        except HTTPError as error:
            found.append(error.code)

    await asyncio.to_thread(probe)
    asking = threading.Thread(target=probe)
    asking.start()
    asking.join(TIMEOUT)
    await asyncio.to_thread(probe)
    assert found == [200, 503, 200]
