"""What may lie in a model directory. Sound versions must still be taken up, and nothing else may answer."""

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serving.pb.inference import open_inference_pb2 as inference
from tests.robustness import hostile_networks as networks
from tests.robustness.attacker import INFER, connected, outcome
from tests.robustness.case import Case, Limits, flags
from tests.robustness.judge import MARK
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message

TAKE_UP_SECONDS = 45.0
"""Time for a sound version to be taken up, whatever lies beside it."""

_MOST_OLD_SERIES = 10  # versions that no longer serve, and may still have series

_NUMBERS = itertools.count(1000)
_TAKEN_UP, _REFUSED, _NOT_LISTED = "sound version taken up", "hostile version refused", "hostile version not listed"
_RIGHT = frozenset({_TAKEN_UP, _REFUSED})
_SKIPPED = frozenset({_TAKEN_UP, _REFUSED, _NOT_LISTED})


async def index(target: Target) -> dict[str, tuple[str, str]]:
    """Returns the state and the reason of each version of the model."""
    async with connected(target.port) as client:
        response = client.send(f"{INFER}/RepositoryIndex", grpc_message(b""))[1]
        if await outcome(response) != "OK":
            return {}
    listed = inference.RepositoryIndexResponse.FromString(response.body[5:])
    return {model.version: (model.state, model.reason) for model in listed.models}


async def state(target: Target, version: int, *wanted: str, seconds: float = TAKE_UP_SECONDS) -> tuple[str, str]:
    """Waits until the state of a version is one of these. Returns the last state and reason, ("", "") without any."""
    end = time.monotonic() + seconds
    while (now := (await index(target)).get(str(version), ("", "")))[0] not in wanted and time.monotonic() < end:
        await asyncio.sleep(0.2)
    return now


async def _beside_sound_versions(target: Target, put: Callable[[Path, int], None], *, listed: bool) -> Counter[str]:
    """Puts something into the directory as a version, then publishes a sound version, and looks what becomes of both.

    Args:
        target: the service.
        put: takes the repository and the number of the hostile version.
        listed: True if the service must list the hostile version, with the reason for which it is refused.
    """
    hostile, sound = next(_NUMBERS), next(_NUMBERS)
    try:
        put(target.models, hostile)
        await asyncio.sleep(1)  # two polls
        target.publish(sound)
        taken = await state(target, sound, "READY")
        came = await state(target, hostile, "UNAVAILABLE", seconds=TAKE_UP_SECONDS if listed else 0)
    finally:
        _clear(target.models / "digits" / str(hostile))
    outcomes = Counter([_TAKEN_UP if taken[0] == "READY" else f"sound version {taken}"])
    match came:
        case "", "":
            outcomes[_NOT_LISTED] += 1
        case "UNAVAILABLE", reason if 0 < len(reason) < 1000 and not _shows_a_path(target, reason):
            outcomes[_REFUSED] += 1
        case _:
            outcomes[f"hostile version {came[0]}: {came[1][:300]!r}"] += 1
    return outcomes


def _shows_a_path(target: Target, reason: str) -> bool:
    return any(str(directory) in reason for directory in (target.directory, target.checkout, "/etc/", "/dev/"))


def _clear(directory: Path) -> None:
    if directory.is_dir():
        directory.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
    for routing in directory.parent.glob("routing.toml"):
        routing.unlink()


def _network(build: Callable[[], object]) -> Callable[[Path, int], None]:
    def put(models: Path, version: int) -> None:
        networks.place(models, version, build())  # type: ignore[arg-type]

    return put


def _made(make: Callable[[Path], None]) -> Callable[[Path, int], None]:
    """Returns what makes the path of a model file something else than a model file."""

    def put(models: Path, version: int) -> None:
        directory = models / "digits" / str(version)
        directory.mkdir(parents=True)
        make(directory / "model.onnx")

    return put


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _sparse(file: Path) -> None:
    with file.open("wb") as content:
        content.truncate(3 << 30)


def _unreadable(file: Path) -> None:
    file.write_bytes(b"")
    file.parent.chmod(0)


def _in_directory(file: Path) -> None:
    file.mkdir()


def _link_to(goal: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(goal)


def _routing(make: Callable[[Path], None]) -> Callable[[Path, int], None]:
    return lambda models, version: make(models / "digits" / "routing.toml")


def _external(location: str) -> Callable[[Path, int], None]:
    def put(models: Path, version: int) -> None:
        (models / "weights.bin").write_bytes(bytes(784 * 10 * 4))
        directory = models / "digits" / str(version)
        directory.mkdir(parents=True)
        (directory / "linked.bin").symlink_to(models / "weights.bin")
        (directory / "beside.bin").write_bytes(bytes(784 * 10 * 4))
        (directory / "new").write_bytes(networks.external(location.format(models=models)).SerializeToString())
        (directory / "new").rename(directory / "model.onnx")

    return put


async def _many_versions(target: Target) -> Counter[str]:
    """Publishes version after version, and deletes those before. Metrics must not keep all of them."""
    versions = [next(_NUMBERS) for _ in range(_MOST_OLD_SERIES + 4)]
    for at, version in enumerate(versions):
        target.publish(version)
        await state(target, version, "READY")
        if at:
            shutil.rmtree(target.models / "digits" / str(versions[at - 1]))
    end = time.monotonic() + 20
    while (kept := len(target.versions_with_series()) - 1) > _MOST_OLD_SERIES and time.monotonic() < end:
        await asyncio.sleep(0.5)
    return Counter(["metrics forget" if kept <= _MOST_OLD_SERIES else f"metrics keep {kept} versions that do not serve"])


async def _unreadable_at_first(target: Target) -> Counter[str]:
    """Publishes a version that the service may not read, and mends the rights of the file later."""
    rights = "-dac_override,-dac_read_search"  # by which root reads what it may not
    wrapper = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}") if os.geteuid() == 0 else ()
    version = next(_NUMBERS)
    with tempfile.TemporaryDirectory(prefix="digits-harm-") as directory:
        own = await asyncio.to_thread(Target, target.front, Path(directory), target.flags, target.checkout, wrapper=wrapper)
        try:
            file = own.publish(version, mode=0)
            refused = await state(own, version, "UNAVAILABLE")
            await asyncio.sleep(3)
            file.chmod(0o644)
            mended = await state(own, version, "READY")
        finally:
            own.close()
    return Counter([f"at first {refused[0]}", f"once readable {mended[0]}"])


_INJECTED = f"x\n2026-11-30 00:00:00,000 INFO {MARK}\x1b[31m\r{MARK}\u2028"
_LARGE = Limits(peak_megabytes=700.0)  # the process that tries a version is part of the sum, with 256 MB and its own 70

_FILES: dict[str, Callable[[Path, int], None]] = {
    "a FIFO": _made(_fifo),
    "a link to an endless device": _made(_link_to("/dev/zero")),
    "a link to a terminal": _made(_link_to("/dev/tty")),
    "a link to secrets": _made(_link_to("/etc/shadow")),
    "a sparse file of 3 GB": _made(_sparse),
    "an empty file": _network(lambda: b""),
    "noise": _network(lambda: os.urandom(100_000)),
    "a network that never ends": _network(networks.endless),
    "a network that ends its process": _network(networks.crashing),
    "a network of 2.5 GB": _network(lambda: networks.growing(2.5)),
    "a network that drops rows": _network(networks.of_other_rows),
    "an operation that nobody has": _network(networks.unknown_operation),
    "a recipe that breaks lines": _network(lambda: networks.with_property("recipe", _INJECTED)),
    "a recipe of 20 MB": _network(lambda: networks.with_property("recipe", "r" * 20_000_000)),
    "labels of 5 MB": _network(lambda: networks.with_property("labels", "7," * 2_500_000)),
    "weights in a file above": _external("../../../weights.bin"),
    "weights in a file by its path": _external("{models}/weights.bin"),
    "weights in a linked file": _external("linked.bin"),
    "weights in a file beside it": _external("beside.bin"),
}

_DIRECTORIES: dict[str, Callable[[Path, int], None]] = {
    "a link to itself": _made(_link_to("model.onnx")),
    "a directory named model.onnx": _made(_in_directory),
    "a directory that nobody may read": _made(_unreadable),
    "a FIFO named routing.toml": _routing(_fifo),
    "a device named routing.toml": _routing(_link_to("/dev/zero")),
    "a routing.toml of 200 MB": _routing(lambda file: (file.write_bytes(b"stable = 100\n#" + b"x" * 200_000_000), None)[1]),
    "a deep routing.toml": _routing(lambda file: (file.write_text("a=" + "[" * 100_000), None)[1]),
}


def _in_repository(name: str, put: Callable[[Path, int], None], right: frozenset[str]) -> Case:
    attack = partial(_beside_sound_versions, put=put, listed=right == _RIGHT)
    return Case(f"{name} in the repository", attack, right, fronts=("http2",), limits=_LARGE)


CASES = (
    *(_in_repository(name, put, _RIGHT) for name, put in _FILES.items()),
    *(_in_repository(name, put, _SKIPPED) for name, put in _DIRECTORIES.items()),
    Case(
        "fourteen versions in a row",
        _many_versions,
        frozenset({"metrics forget"}),
        fronts=("http2",),
        flags=flags(workers=2),
        limits=Limits(peak_megabytes=900.0),
    ),
    Case(
        "a version that is unreadable at first",
        _unreadable_at_first,
        frozenset({"at first UNAVAILABLE", "once readable READY"}),
        fronts=("http2",),
    ),
)
