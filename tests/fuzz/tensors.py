"""Fuzz test of the tensor API, for a bounded time: `python -m tests.fuzz.tensors SECONDS`, or `make fuzz`.

Every ModelInferRequest must end in an answer or a RequestError. Any other error ends the run with a nonzero exit status, and
the input is kept in a file. A stand-in replaces the model, so the test covers all code before it.
"""

import asyncio
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

try:
    import atheris
except ImportError:
    print("skipped: atheris is not installed; its wheels are for Linux on x86-64 only", file=sys.stderr)
    sys.exit(0)

with warnings.catch_warnings(), atheris.instrument_imports(include=["serving.api.tensors", "serving.api.open_inference"]):
    warnings.simplefilter("ignore")
    from serving.api import tensors
    from serving.api.infer_messages import encode_infer, parse_infer
    from serving.api.open_inference import OpenInference
    from serving.call import Call
    from serving.errors import RequestError
    from serving.pb.inference import open_inference_pb2 as pb
    from serving.recognition.reading import Images, ReadOptions

IMAGE = 784
CONTRACT = "2"

FOUND = Path("build/fuzz")
"""Directory of kept inputs: tensors/ has those that reached new code; failing inputs lie beside it."""


class Blank:
    """A recognizer that answers zeros, and checks that its arguments are images."""

    async def infer(self, images: Images, options: ReadOptions, call: Call) -> Any:
        assert isinstance(images.pixels, bytes)
        assert bool(images.pixels) != bool(images.crops)
        assert len(images.pixels) % IMAGE == 0
        assert options.timeout_seconds >= 0
        outputs = np.zeros((len(images.crops) or len(images.pixels) // IMAGE, 10), np.float32)
        model = SimpleNamespace(metadata=SimpleNamespace(contract=CONTRACT))
        version = SimpleNamespace(name=options.model, version=options.version + options.key, model=model)
        return SimpleNamespace(logits=outputs, probabilities=outputs, whole=outputs[:, 0], loaded=version)

    async def recognize(self, images: Images, options: ReadOptions, call: Call) -> Any:
        reading = await self.infer(images, options, call)
        decisions = np.zeros(len(reading.logits), np.uint8)
        return reading, SimpleNamespace(decisions=decisions, threshold=None, recognition_id="", captured=False)


def seeds() -> list[pb.ModelInferRequest]:
    """Returns valid requests of clients; each one leads into another part of the code."""
    raw = pb.ModelInferRequest(model_name="digits", id="1", raw_input_contents=[bytes(IMAGE)])
    raw.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    typed = pb.ModelInferRequest(model_version="3")
    typed.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28]).contents.uint_contents.extend([200] * IMAGE)
    chosen = pb.ModelInferRequest()
    chosen.CopyFrom(raw)
    chosen.outputs.add(name="probabilities")
    chosen.outputs.add(name="logits").parameters["classification"].int64_param = 3
    hurried = pb.ModelInferRequest()
    hurried.CopyFrom(raw)
    hurried.parameters["timeout"].int64_param = 5_000_000
    hurried.parameters["key"].string_param = "a"
    hurried.parameters["priority"].uint64_param = 1
    cropped = pb.ModelInferRequest(raw_input_contents=[b"\x02\0\0\0ab\0\0\0\0"])
    cropped.inputs.add(name="crops", datatype="BYTES", shape=[2])
    cropped.outputs.add(name="decisions")
    cropped.parameters["target_error_rate"].double_param = 0.01
    shared = pb.ModelInferRequest()
    shared.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28]).parameters[
        "shared_memory_region"
    ].string_param = "a"
    return [raw, typed, chosen, hurried, cropped, shared]


def composed(given: Any) -> pb.ModelInferRequest:
    """Builds a request from valid parts and random ones; random bytes alone rarely make a message that gets far."""

    def chosen(*known: str) -> str:
        number = given.ConsumeIntInRange(0, len(known))
        return known[number] if number < len(known) else str(given.ConsumeUnicodeNoSurrogates(80))

    request = pb.ModelInferRequest(id=chosen(""))
    for _ in range(given.ConsumeIntInRange(0, 2)):
        axes = [given.ConsumeInt(8) if given.ConsumeBool() else size for size in (given.ConsumeIntInRange(0, 3), 28, 28)]
        shape = axes[: given.ConsumeIntInRange(0, 3)] if given.ConsumeBool() else axes
        tensor = request.inputs.add(name=chosen("images"), datatype=chosen("UINT8", "FP32"), shape=shape)
        if given.ConsumeBool():
            values = [given.ConsumeIntInRange(0, 300)] * (
                given.ConsumeIntInRange(0, 2) * IMAGE + given.ConsumeIntInRange(0, 1)
            )
            tensor.contents.uint_contents.extend(values)
        if given.ConsumeBool():
            tensor.contents.bytes_contents.append(given.ConsumeBytes(3))
    for _ in range(given.ConsumeIntInRange(0, 2)):
        request.raw_input_contents.append(bytes(given.ConsumeIntInRange(0, 3) * IMAGE + given.ConsumeIntInRange(0, 1)))
    for _ in range(given.ConsumeIntInRange(0, 3)):
        output = request.outputs.add(name=chosen(*tensors.OUTPUTS[CONTRACT]))
        if given.ConsumeBool():
            output.parameters[chosen("classification", "shared_memory_region")].int64_param = 1
    for _ in range(given.ConsumeIntInRange(0, 2)):
        parameter = request.parameters[chosen("timeout", "key")]
        kind = given.ConsumeIntInRange(0, 3)
        if kind == 0:
            parameter.int64_param = given.ConsumeInt(8)
        elif kind == 1:
            parameter.uint64_param = given.ConsumeIntInRange(0, 2**64 - 1)
        elif kind == 2:
            parameter.string_param = chosen("a")
    return request


def main() -> None:
    """Runs the fuzzer for the number of seconds in the first argument."""
    service: Any = OpenInference(None, None, None, Blank(), None, str)  # type: ignore[arg-type]
    loop = asyncio.Runner().get_loop()

    def one(data: bytes) -> None:
        """Sends a message composed from `data`; data that starts with a zero byte is an encoded message itself."""
        try:
            encoded = data[1:] if data[:1] == b"\0" else composed(atheris.FuzzedDataProvider(data)).SerializeToString()
            request = pb.ModelInferRequest.FromString(encoded)
        except DecodeError:
            return
        try:
            inferred = loop.run_until_complete(service.infer(parse_infer(encoded), Call()))
            answer = pb.ModelInferResponse.FromString(encode_infer(inferred))
        except RequestError as error:
            reason = str(error)
            assert 0 < len(reason) < 1000, "the message must fit in a header"
            return
        assert len(answer.outputs) == len(request.outputs or tensors.OUTPUTS[CONTRACT])
        assert answer.id == request.id

    corpus = FOUND / "tensors"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(b"\0" + seed.SerializeToString())
    limits = [f"-max_total_time={sys.argv[1]}", "-max_len=4096", "-timeout=10"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={FOUND}/", str(corpus)], one)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
