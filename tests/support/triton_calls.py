"""Calls by the unmodified tritonclient; their outcome is printed as JSON.

Usage: `python -m tests.support.triton_calls STORY ADDRESS IMAGES`.

The calls run in a process of their own: tritonclient brings its own copy of the protocol's messages, and two copies clash in
one process. IMAGES is a .npy file, (N, 28, 28) uint8. Each public function below `refusal` is a story, a sequence of calls;
tests/api/test_tritonclient.py has the expected outcomes.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

Images = NDArray[np.uint8]
Json = Any  # a value that JSON can hold

TIMEOUT = 20  # seconds, of every call


def tensor(images: NDArray[Any], name: str = "images", datatype: str = "UINT8") -> Any:
    given = triton.InferInput(name, list(images.shape), datatype)
    given.set_data_from_numpy(images)
    return given


def as_json(result: Any) -> Json:
    """Converts an answer to JSON values."""
    response = result.get_response()
    return {
        "id": response.id,
        "model": response.model_name,
        "version": response.model_version,
        "outputs": {tensor.name: result.as_numpy(tensor.name).tolist() for tensor in response.outputs},
        "datatypes": [tensor.datatype for tensor in response.outputs],
    }


def refusal(call: Any, *arguments: Any, **named: Any) -> Json:
    """Returns the status and the message of a call's end."""
    try:
        call(*arguments, **named)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


def metadata(client: Any, images: Images) -> Json:
    return {
        "live": client.is_server_live(client_timeout=TIMEOUT),
        "ready": client.is_server_ready(client_timeout=TIMEOUT),
        "model ready": client.is_model_ready("digits", client_timeout=TIMEOUT),
        "other model ready": client.is_model_ready("letters", client_timeout=TIMEOUT),
        "other version ready": client.is_model_ready("digits", "1", client_timeout=TIMEOUT),
        "server": client.get_server_metadata(as_json=True, client_timeout=TIMEOUT),
        "model": client.get_model_metadata("digits", as_json=True, client_timeout=TIMEOUT),
        "config": client.get_model_config("digits", as_json=True, client_timeout=TIMEOUT),
        "index": client.get_model_repository_index(as_json=True, client_timeout=TIMEOUT),
    }


def infer(client: Any, images: Images) -> Json:
    chosen = [triton.InferRequestedOutput("probabilities")]
    reordered = [triton.InferRequestedOutput("probabilities"), triton.InferRequestedOutput("logits")]
    given, limit = [tensor(images)], {"client_timeout": TIMEOUT}
    return {
        "all": as_json(client.infer("digits", given, request_id="a b", **limit)),
        "chosen": as_json(client.infer("digits", given, outputs=chosen, **limit)),
        "reordered": as_json(client.infer("digits", given, outputs=reordered, **limit)),
        "long timeout": as_json(client.infer("digits", given, timeout=20_000_000, priority=1, **limit)),
        "compressed": as_json(client.infer("digits", given, compression_algorithm="gzip", **limit)),
        "own parameters": as_json(client.infer("digits", given, parameters={"key": "a", "mine": 3}, **limit)),
    }


def async_infer(client: Any, images: Images) -> Json:
    done: queue.Queue[Any] = queue.Queue()
    for number, image in enumerate(images):
        client.async_infer(
            "digits",
            [tensor(image[None])],
            callback=lambda result, error: done.put((result, error)),
            request_id=str(number),
            client_timeout=TIMEOUT,
        )
    ended = [done.get(timeout=TIMEOUT) for _ in images]
    return [as_json(result) if error is None else str(error) for result, error in ended]


def stream(client: Any, images: Images) -> Json:
    """Sends every image in a request of its own on one stream; an image that is too small follows every fiftieth."""
    done: queue.Queue[Any] = queue.Queue()
    sent = 0
    client.start_stream(lambda result, error: done.put((result, error)), stream_timeout=TIMEOUT)
    for number, image in enumerate(images):
        client.async_stream_infer("digits", [tensor(image[None])], request_id=str(number))
        sent += 1
        if number % 50 == 49:
            client.async_stream_infer("digits", [tensor(image[None, :27])], request_id="bad")
            sent += 1
    ended = [done.get(timeout=TIMEOUT) for _ in range(sent)]
    client.stop_stream()
    return {
        "answers": [as_json(result) for result, error in ended if error is None],
        "errors": [[error.status(), error.message()] for _, error in ended if error is not None],
        "final": [
            result.get_response().parameters["triton_final_response"].bool_param for result, error in ended if error is None
        ],
        "left": done.qsize(),
    }


def errors(client: Any, images: Images) -> Json:
    good = [tensor(images)]
    limit = {"client_timeout": TIMEOUT}
    unknown = [triton.InferRequestedOutput("digits")]
    classes = [triton.InferRequestedOutput("probabilities", class_count=3)]
    return {
        "model": refusal(client.infer, "letters", good, **limit),
        "version": refusal(client.infer, "digits", good, model_version="1", **limit),
        "no version": refusal(client.infer, "digits", good, model_version="newest", **limit),
        "long name": refusal(client.infer, "x" * 100_000, good, **limit),
        "shape": refusal(client.infer, "digits", [tensor(images[:, :27])], **limit),
        "no images": refusal(client.infer, "digits", [tensor(images[:0])], **limit),
        "datatype": refusal(client.infer, "digits", [tensor(images.astype(np.float32), datatype="FP32")], **limit),
        "name": refusal(client.infer, "digits", [tensor(images, "image")], **limit),
        "inputs": refusal(client.infer, "digits", good * 2, **limit),
        "output": refusal(client.infer, "digits", good, outputs=unknown, **limit),
        "classes": refusal(client.infer, "digits", good, outputs=classes, **limit),
        "timeout": refusal(client.infer, "digits", good, timeout=-1, **limit),
        "metadata": refusal(client.get_model_metadata, "letters", **limit),
        "metadata of a version": refusal(client.get_model_metadata, "digits", "1", **limit),
        "config": refusal(client.get_model_config, "letters", **limit),
        "statistics": refusal(client.get_inference_statistics, "letters", **limit),
        "load": refusal(client.load_model, "digits", **limit),
        "unload": refusal(client.unload_model, "digits", **limit),
        "trace": refusal(client.get_trace_settings, **limit),
        "valid": refusal(client.infer, "digits", good, **limit),
    }


def late(client: Any, images: Images) -> Json:
    """Sends calls that must time out: the test holds the model back."""
    return {
        "client_timeout": refusal(client.infer, "digits", [tensor(images)], client_timeout=0.2),
        "timeout": refusal(client.infer, "digits", [tensor(images)], timeout=200_000, client_timeout=TIMEOUT),
    }


def statistics(client: Any, images: Images) -> Json:
    def now(name: str = "") -> Json:
        return client.get_inference_statistics(name, as_json=True, client_timeout=TIMEOUT)

    before = now()
    for image in images:
        client.infer("digits", [tensor(image[None])], client_timeout=TIMEOUT)
    client.infer("digits", [tensor(images)], client_timeout=TIMEOUT)
    return {"before": before, "after": now(), "named": now("digits")}


def control(client: Any, images: Images) -> Json:
    """Loads and unloads the model, on a server with model control."""
    good, limit = [tensor(images)], {"client_timeout": TIMEOUT}

    def state() -> Json:
        return {
            "ready": client.is_model_ready("digits", **limit),
            "infer": refusal(client.infer, "digits", good, **limit),
            "metadata": refusal(client.get_model_metadata, "digits", **limit),
            "index": client.get_model_repository_index(as_json=True, **limit)["models"][0],
        }

    story = {"before": state(), "load a loaded model": refusal(client.load_model, "digits", **limit)}
    story["unload"] = refusal(client.unload_model, "digits", unload_dependents=True, **limit)
    story["unloaded"] = state()
    story["unload again"] = refusal(client.unload_model, "digits", **limit)
    story["load"] = refusal(client.load_model, "digits", **limit)
    story["loaded"] = state()
    story["load unknown"] = refusal(client.load_model, "letters", **limit)
    story["unload unknown"] = refusal(client.unload_model, "letters", **limit)
    story["load with config"] = refusal(client.load_model, "digits", config="{}", **limit)
    story["load with file"] = refusal(client.load_model, "digits", config="{}", files={"file:1/model.onnx": b""}, **limit)
    return story


async def aio(address: str, images: Images) -> Json:
    async with triton_aio.InferenceServerClient(address) as client:

        async def requests() -> AsyncIterator[Any]:
            for number, image in enumerate(images):
                bad = number % 50 == 49
                given = image[None, :27] if bad else image[None]
                yield {"model_name": "digits", "inputs": [tensor(given)], "request_id": str(number)}

        ready = await client.is_model_ready("digits", client_timeout=TIMEOUT)
        calls = [
            client.infer("digits", [tensor(image[None])], request_id=str(number), client_timeout=TIMEOUT)
            for number, image in enumerate(images)
        ]
        answers = [as_json(answer) for answer in await asyncio.gather(*calls)]
        streamed = [
            as_json(answer) if error is None else error.message()
            async for answer, error in client.stream_infer(requests(), stream_timeout=TIMEOUT)
        ]
        try:
            await client.infer("letters", [tensor(images)], client_timeout=TIMEOUT)
            refused: Json = None
        except InferenceServerException as error:
            refused = [error.status(), error.message()]
        return {"ready": ready, "answers": answers, "streamed": streamed, "refused": refused}


STORIES = {story.__name__: story for story in (metadata, infer, async_infer, stream, errors, late, statistics, control)}


def main(name: str, address: str, file: str) -> None:
    images = np.load(file)
    if name == "aio":
        story = asyncio.run(aio(address, images))
    else:
        with triton.InferenceServerClient(address) as client:
            story = STORIES[name](client, images)
    print(json.dumps(story))


if __name__ == "__main__":
    main(*sys.argv[1:])
