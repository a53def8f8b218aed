"""Calls of the unmodified tritonclient, made in a process of its own by tests/support/triton_calls.py."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contract import OUTPUTS
from serving.inference.classifier import Classifier
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.infer_calls import assert_close
from tests.support.metrics import value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]
Outcome = Any  # any JSON value


async def run_calls(name: str, server: Server, images: Images, tmp_path: Path) -> Outcome:
    """Runs a function of tests/support/triton_calls.py on a server; returns the JSON that it prints."""
    file = tmp_path / "images.npy"
    np.save(file, images)
    command = [sys.executable, "-m", "tests.support.triton_calls", name, f"127.0.0.1:{server.grpc_port}", str(file)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=3 * TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_answers_match(answers: list[Outcome], outputs: NDArray[np.float32]) -> None:
    """Compares each answer with the output for the image whose number is the answer's id."""
    for answer in answers:
        assert_close(answer["outputs"]["probabilities"], outputs[int(answer["id"]), 10:20])


def outputs_of(model: Classifier) -> dict[str, str]:
    """Returns the number of columns of each output of a model, by name."""
    return {name: str(shape[1]) for name, (_, shape) in OUTPUTS[model.metadata.contract].items()}


async def test_tritonclient_gets_the_metadata_and_configuration(
    server: Server, model: Classifier, images: Images, tmp_path: Path
) -> None:
    found = await run_calls("metadata", server, images[:1], tmp_path)
    assert (found["live"], found["ready"], found["model ready"]) == (True, True, True)
    assert (found["other model ready"], found["other version ready"]) == (False, False)
    assert found["server"]["name"] == "postal-digits"
    assert found["server"]["extensions"] == ["model_configuration", "statistics"]
    assert found["model"] == {
        "name": "digits",
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": ["-1", "28", "28"]}],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": ["-1", columns]} for name, columns in outputs_of(model).items()
        ],
    }
    config = found["config"]["config"]
    assert config.pop("instance_group")[0]["kind"] == "KIND_CPU"
    assert config == {
        "name": "digits",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 128,
        "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["28", "28"]}],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": [columns]} for name, columns in outputs_of(model).items()
        ],
        "dynamic_batching": {},
    }
    assert found["index"]["models"] == [{"name": "digits", "version": model.version, "state": "READY", "reason": "stable"}]


async def test_tritonclient_infers_with_every_option(
    server: Server, model: Classifier, images: Images, outputs: NDArray[np.float32], tmp_path: Path
) -> None:
    found = await run_calls("infer", server, images[:5], tmp_path)
    for name, requested in {
        "all": [*outputs_of(model)],
        "chosen": ["probabilities"],
        "reordered": ["probabilities", "logits"],
        "long timeout": [*outputs_of(model)],
        "compressed": [*outputs_of(model)],
        "own parameters": [*outputs_of(model)],
    }.items():
        answer = found[name]
        assert (answer["model"], answer["version"]) == ("digits", model.version)
        assert list(answer["outputs"]) == requested
        assert set(answer["datatypes"]) == {"FP32"}
        assert_close(answer["outputs"]["probabilities"], outputs[:5, 10:20])
        if "logits" in requested:
            assert_close(answer["outputs"]["logits"], outputs[:5, :10])
    assert found["all"]["id"] == "a b"


async def test_tritonclient_infers_with_callbacks(
    server: Server, images: Images, outputs: NDArray[np.float32], tmp_path: Path
) -> None:
    answers = await run_calls("async_infer", server, images[:200], tmp_path)
    assert {answer["id"] for answer in answers} == {str(number) for number in range(200)}
    assert_answers_match(answers, outputs)


async def test_tritonclient_streams_in_order_and_an_error_ends_only_its_request(
    server: Server, images: Images, outputs: NDArray[np.float32], tmp_path: Path
) -> None:
    found = await run_calls("stream", server, images[:200], tmp_path)
    assert [answer["id"] for answer in found["answers"]] == [str(number) for number in range(200)]
    assert_answers_match(found["answers"], outputs)
    reason = "images has shape [1, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"
    assert found["errors"] == [[None, reason]] * 4
    assert found["final"] == [True] * 200
    assert found["left"] == 0
    assert value(server.metrics.registry, "digits_requests_total", method="ModelStreamInfer", code="OK") == 200
    labels = {"method": "ModelStreamInfer", "code": "INVALID_ARGUMENT"}
    assert value(server.metrics.registry, "digits_requests_total", **labels) == 4


async def test_tritonclient_infers_and_streams_from_asyncio(
    server: Server, images: Images, outputs: NDArray[np.float32], tmp_path: Path
) -> None:
    found = await run_calls("aio", server, images[:200], tmp_path)
    assert found["ready"]
    assert [answer["id"] for answer in found["answers"]] == [str(number) for number in range(200)]
    assert_answers_match(found["answers"], outputs)
    streamed = found["streamed"]
    assert [number for number, answer in enumerate(streamed) if isinstance(answer, str)] == [49, 99, 149, 199]
    answers = [answer for answer in streamed if not isinstance(answer, str)]
    assert [answer["id"] for answer in answers] == [str(number) for number in range(200) if number % 50 != 49]
    assert_answers_match(answers, outputs)
    assert found["refused"][0] == "StatusCode.NOT_FOUND"


async def test_tritonclient_gets_the_reason_of_each_refusal(server: Server, images: Images, tmp_path: Path) -> None:
    found = await run_calls("errors", server, images[:2], tmp_path)
    invalid, unknown, denied = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.PERMISSION_DENIED"
    expected = {
        "model": (unknown, "letters"),
        "version": (unknown, "'1'"),
        "no version": (unknown, "'newest'"),
        "long name": (invalid, "model_name has "),
        "shape": (invalid, "images has shape [2, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"),
        "no images": (invalid, "images has shape [0, 28, 28], expected images, UINT8 [n, 28, 28], n at least 1"),
        "datatype": (invalid, "images is of datatype 'FP32', expected images, UINT8 [n, 28, 28]"),
        "name": (invalid, "there is no input 'image', expected images, UINT8 [n, 28, 28]"),
        "inputs": (invalid, "there are 2 inputs, expected one: images, UINT8 [n, 28, 28]"),
        "output": (invalid, "there is no output 'digits', expected any of logits, probabilities"),
        "classes": (invalid, "as a classification"),
        "timeout": (invalid, "parameter timeout is not a number of microseconds"),
        "metadata": (unknown, "letters"),
        "metadata of a version": (unknown, "'1'"),
        "config": (unknown, "letters"),
        "statistics": (unknown, "letters"),
        "load": (denied, "--model-control"),
        "unload": (denied, "--model-control"),
        "trace": ("StatusCode.UNIMPLEMENTED", ""),
        "valid": ("OK", ""),
    }
    assert set(found) == set(expected)
    for name, (status, part) in expected.items():
        assert found[name][0] == status, name
        assert part in found[name][1], name


async def test_either_timeout_of_tritonclient_ends_a_call(
    start_server: StartServer, gated: GatedModel, images: Images, tmp_path: Path
) -> None:
    server = await start_server(gated, instances=1)
    found = await run_calls("late", server, images[:1], tmp_path)
    gated.open()
    assert {name: status for name, (status, _) in found.items()} == {
        "client_timeout": "StatusCode.DEADLINE_EXCEEDED",
        "timeout": "StatusCode.DEADLINE_EXCEEDED",
    }


async def test_tritonclient_gets_statistics_that_add_up(
    server: Server, model: Classifier, images: Images, tmp_path: Path
) -> None:
    found = await run_calls("statistics", server, images[:20], tmp_path)
    assert found["after"] == found["named"]
    (before,), (after,) = found["before"]["model_stats"], found["after"]["model_stats"]
    assert (before["name"], before["version"]) == ("digits", model.version)
    assert before["inference_stats"]["success"] == {}
    assert "last_inference" not in before
    assert int(after["inference_count"]) == 40
    assert int(after["execution_count"]) == 21
    assert int(after["last_inference"]) > 1_700_000_000_000
    stats = {name: {key: int(number) for key, number in part.items()} for name, part in after["inference_stats"].items()}
    assert stats.pop("fail") == {}
    # perf_analyzer aborts unless the three computes have the same count.
    assert {name: part["count"] for name, part in stats.items()} == dict.fromkeys(
        ("success", "queue", "compute_input", "compute_infer", "compute_output"), 21
    )
    assert stats["success"]["ns"] == stats["queue"]["ns"] + stats["compute_infer"]["ns"]
    assert min(stats["queue"]["ns"], stats["compute_infer"]["ns"]) > 0


async def test_tritonclient_loads_and_unloads_models_with_model_control(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path
) -> None:
    server = await start_server(model_control=True)
    found = await run_calls("control", server, images[:1], tmp_path)
    entry = {"name": "digits", "version": model.version}
    serving = {
        "ready": True,
        "infer": ["OK", ""],
        "metadata": ["OK", ""],
        "index": {**entry, "state": "READY", "reason": "stable"},
    }
    assert found["before"] == found["loaded"] == serving
    for done in ("load a loaded model", "unload", "unload again", "load"):
        assert found[done] == ["OK", ""], done
    assert found["unloaded"]["ready"] is False
    assert found["unloaded"]["infer"] == ["StatusCode.UNAVAILABLE", "model 'digits' is not loaded"]
    assert found["unloaded"]["metadata"] == ["StatusCode.UNAVAILABLE", "model 'digits' is not loaded"]
    assert found["unloaded"]["index"]["state"] == "UNAVAILABLE"
    for unknown in ("load unknown", "unload unknown"):
        assert found[unknown][0] == "StatusCode.NOT_FOUND"
    for overriding in ("load with config", "load with file"):
        assert found[overriding][0] == "StatusCode.INVALID_ARGUMENT"
        assert "a model is loaded from its directory in the repository" in found[overriding][1]
