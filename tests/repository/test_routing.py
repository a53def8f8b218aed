from collections import Counter
from pathlib import Path

import pytest

from serving.repository.routing import Routing, RoutingError
from serving.repository.versions import RepositoryError
from tests.repository.rollout import (
    Images,
    index,
    recognize_all,
    stable_version,
    until_listed,
    until_refused,
    until_stable,
    write_routing,
)
from tests.support.metrics import value
from tests.support.model_files import publish
from tests.support.servers import StartServer


async def test_a_pinned_version_serves_and_newer_ones_wait(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    assert stable_version(server) == "1"
    write_routing(tmp_path, "stable = 2")
    await until_stable(server, "2")
    write_routing(tmp_path, "stable = 7")
    await until_refused(server, "missing")
    assert stable_version(server) == "2"


async def test_a_canary_of_ten_percent_answers_ten_percent(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 10")
    server = await start_server(None, models=tmp_path)
    assert index(server) == {("digits", "1"): ("READY", "stable"), ("digits", "2"): ("READY", "canary")}
    seen: Counter[str] = Counter()
    for _ in range(4):
        seen.update(answer.model_version for answer in await recognize_all(server, images))
    share = seen["2"] / seen.total()
    assert seen.total() == 4000
    assert 0.1 - 5 * 0.0047 < share < 0.1 + 5 * 0.0047, "five standard deviations of a share of 0.1 among 4,000"
    assert value(server.metrics.registry, "digits_predictions_total", version="2") == seen["2"]


async def test_a_key_always_gets_one_version_and_keys_spread_by_percent(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 30")
    server = await start_server(None, models=tmp_path)
    for key in ("sorter-1", "sorter-2", "sorter-3", "sorter-4", "sorter-5"):
        assert len({answer.model_version for answer in await recognize_all(server, images[:30], key=key)}) == 1
    versions = Counter(server.repository.catalog.route(key=f"piece {n}").version for n in range(10_000))
    assert 0.27 < versions["2"] / 10_000 < 0.33
    assert [server.repository.catalog.route(key=f"piece {n}").version for n in range(20)] == list("12111112121221211111")


async def test_a_canary_becomes_stable_without_being_loaded_again(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 50")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    canary = server.repository.catalog.answering()[1]
    write_routing(tmp_path, "stable = 2")
    await until_stable(server, "2")
    assert server.repository.catalog.answering() == [canary]
    assert value(server.metrics.registry, "digits_model_role", version="2", role="canary") == 0
    assert value(server.metrics.registry, "digits_model_role", version="2", role="stable") == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("stable = 'newest'", "stable: Input should be a valid integer"),
        ("stable = 1\n[canary]\nversion = 1\npercent = 5", "a version can have one role only"),
        ("stable = 1\n[canary]\nversion = 2\npercent = 101", "canary.percent: Input should be less than or equal to 100"),
        ("[canary]\nversion = 2", "canary.percent: Field required"),
        ("[shadow]\nversion = 2", "beside a canary or a shadow, stable must be named"),
        ("canry = 3", "canry: Extra inputs are not permitted"),
        ("stable =", "Invalid value (at end of document)"),
        ("stable = " + "1" * 5000, "Exceeds the limit"),
        ("x = " + "[" * 20_000, "recursion"),
    ],
)
async def test_an_invalid_routing_is_reported_and_the_previous_one_stays(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, error: str
) -> None:
    with pytest.raises(RoutingError, match=error.replace("(", r"\(").replace(")", r"\)")):
        Routing.parse(text)
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    write_routing(tmp_path, text)
    await until_refused(server, "routing")
    assert error in caplog.text
    assert stable_version(server) == "1"
    write_routing(tmp_path, "stable = 2")
    await until_stable(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_a_routing_is_not_applied_while_it_is_being_written(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=1000)
    for text in (
        "",
        "stable = 2\n[canary]\nversion",
        "stable = 1\n[shadow]\nversion = 2",
    ):  # cut off twice, then complete
        (tmp_path / "digits" / "routing.toml").write_text(text)
        await server.repository.refresh()
        assert [loaded.version for loaded in server.repository.catalog.answering()] == ["1"]
    assert value(server.metrics.registry, "digits_model_refused") == 0
    await server.repository.refresh()
    await until_listed(server, "2", ("UNAVAILABLE", "shadow"))
    (tmp_path / "digits" / "routing.toml").unlink()
    await server.repository.refresh()
    assert stable_version(server) == "1"
    await server.repository.refresh()
    await until_stable(server, "2")


@pytest.mark.parametrize("invalid", [b"stable = one", b"stable = 1 # \xff"])
async def test_an_invalid_routing_at_start_fails_the_start(
    start_server: StartServer, tmp_path: Path, invalid: bytes
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "digits" / "routing.toml").write_bytes(invalid)
    with pytest.raises(RepositoryError, match=r"digits/routing\.toml: "):
        await start_server(None, models=tmp_path)
