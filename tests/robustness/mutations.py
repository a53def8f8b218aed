"""Mutated messages of all methods over the wire: `python -m tests.robustness.mutations --messages 1000000`.

Every call must end with a code that a caller can act on: never UNKNOWN, INTERNAL, or no code. The memory must stay flat, the
polite caller must be answered, and the log must hold no traceback. The command ends with status 1 where one of these fails.
"""

import argparse
import asyncio
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from tests.robustness import stage as stages
from tests.robustness.attacker import DIGITS, INFER
from tests.robustness.case import BOTH, Case, Limits, flags
from tests.robustness.judge import faults
from tests.robustness.messages import REQUESTS
from tests.robustness.target import Target
from tests.support.service import ROOT

_SEED = 21
_IN_TEST = 3000  # messages for each front, so that the whole suite takes a few minutes
_AT_ONCE = 32
_SECONDS = 5.0
_LEFT = 0.1  # share of calls whose caller does not wait
_IMAGE = bytes(300) + b"\xff" * 100 + bytes(384)

_STREAMS = {
    f"{DIGITS}/RecognizeStream": pb.RecognizeStreamRequest,
    f"{INFER}/ModelStreamInfer": inference.ModelInferRequest,
}
_OTHERS = {
    "/grpc.health.v1.Health/Check": [b"", b"\x0a\x05abcde"],
    f"{INFER}/RepositoryModelUnload": [b"\x12\x04nope"],
    f"{INFER}/RepositoryIndex": [b"\x10\x01"],
    f"{INFER}/ServerMetadata": [b""],
    f"{INFER}/ModelConfig": [b"\x0a\x06digits\x12\x012"],
}
_ODD = (
    *(b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\x80" * 9 + b"\x00", b"\x0a\xff\xff\xff\xff\x07", b"\xc3\x28", b"\xed\xa0\x80"),
    *(b"\x0b" * 50, b"\x7a\x04abcd", b"\xf2\xff\xff\xff\x0f\x01a", b"\n\x1b[31m\r"),
    *(struct.pack("<d", number) for number in (float("nan"), float("inf"), -1.0, 1e308)),
    *(b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\0"),
)
_CUT_SHORT = "Internal error from Core"  # what gRPC's own client reports where it still writes when the call has ended
_ENDED_EARLY = "the server ended a stream before its client"
_RIGHT = frozenset({_ENDED_EARLY}) | (
    {code.name for code in grpc.StatusCode} - {"UNKNOWN", "INTERNAL", "DATA_LOSS", "ABORTED", "UNAVAILABLE"}
)


def _valid() -> dict[str, list[bytes]]:
    """Makes valid requests of each method, which all mutations begin with."""
    crop = (ROOT / "serving" / "samples" / "photo.jpg").read_bytes()
    raw = inference.ModelInferRequest(id="1", raw_input_contents=[_IMAGE * 2])
    raw.inputs.add(name="images", datatype="UINT8", shape=[2, 28, 28])
    for name in ("decisions", "logits"):
        raw.outputs.add(name=name)
    raw.parameters["key"].string_param = "k"
    raw.parameters["timeout"].int64_param = 500_000
    raw.parameters["target_error_rate"].double_param = 0.01
    typed = inference.ModelInferRequest()
    typed.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28]).contents.uint_contents.extend([200] * 784)
    crops = inference.ModelInferRequest(raw_input_contents=[struct.pack("<I", len(crop)) + crop])
    crops.inputs.add(name="crops", datatype="BYTES", shape=[1])
    tensors = [message.SerializeToString() for message in (raw, typed, crops)]
    truth = pb.Truth(recognition_id="AQAGDgAAAAAAAAAAAQAAAGRpZ2l0czIw", source=pb.TRUTH_SOURCE_KEYING, values={0: "7"})
    image = pb.RecognizeRequest(image=_IMAGE, key="k", target_error_rate=0.01, model="digits")
    batch, crop_batch = pb.RecognizeBatchRequest(images=_IMAGE * 3), pb.RecognizeBatchRequest(crops=[crop, b"x"])
    requests: dict[str, list[Message]] = {
        f"{DIGITS}/Recognize": [image, pb.RecognizeRequest(crop=crop)],
        f"{DIGITS}/RecognizeBatch": [batch, crop_batch],
        f"{DIGITS}/ReadField": [pb.ReadFieldRequest(images=_IMAGE * 5, lexicon="zip")],
        f"{DIGITS}/ReportTruth": [pb.ReportTruthRequest(truths=[truth])],
        f"{DIGITS}/RecognizeStream": [pb.RecognizeStreamRequest(id=7, timeout_ms=900, request=image)],
    }
    named = {
        path: [REQUESTS[path](name="digits", version="1")] for path in (f"{INFER}/ModelReady", f"{INFER}/ModelMetadata")
    }
    encoded = {path: [one.SerializeToString() for one in messages] for path, messages in (requests | named).items()}
    return encoded | {f"{INFER}/ModelInfer": tensors, f"{INFER}/ModelStreamInfer": tensors} | _OTHERS


def mutate(random: Random, message: bytes, others: Sequence[bytes]) -> bytes:
    """Returns a message with one to eight changes; parts of `others` are among them."""
    out = bytearray(message)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        match random.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 1 if at < len(out):
                out[at] = random.choice((0, 1, 127, 128, 255))
            case 2:
                del out[at : at + random.choice((1, 2, 4, 16, 256))]
            case 3:
                out[at:at] = random.randbytes(random.choice((1, 2, 4, 16, 64)))
            case 4:
                del out[at:]
            case 5:
                other = random.choice(others)
                out[at:] = other[random.randrange(len(other) + 1) :]
            case 6:
                out[at:at] = random.choice(_ODD)
            case _:
                odd = random.choice(_ODD)
                out[at : at + len(odd)] = odd
    return bytes(out)


async def attack(target: Target, messages: int) -> Counter[str]:
    """Sends so many messages, a few calls at once, on four connections. Counts the codes."""
    random = Random(_SEED)  # noqa: S311 - no secret
    valid = _valid()
    paths, others = [*valid], [one for seeds in valid.values() for one in seeds]
    left = messages
    codes: Counter[str] = Counter()
    apart = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{target.port}", options=apart) for _ in range(4)]

    async def caller(number: int) -> None:
        nonlocal left
        channel = channels[number % len(channels)]
        while left > 0:
            path = random.choice(paths)
            sent = [
                mutate(random, random.choice(valid[path]), others)
                for _ in range(random.randint(1, 20) if path in _STREAMS else 1)
            ]
            left -= len(sent)
            seconds = 0.01 if random.random() < _LEFT else _SECONDS
            try:
                if path in _STREAMS:
                    answers: Any = channel.stream_stream(path)
                    async for _ in answers(iter(sent), timeout=seconds):
                        pass
                else:
                    answer: Any = channel.unary_unary(path)
                    await answer(sent[0], timeout=seconds)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                if error.details() == _CUT_SHORT:
                    code = _ENDED_EARLY
                details = error.details() or ""
                late = code == "DEADLINE_EXCEEDED" and seconds == _SECONDS and "the request's timeout" not in details
                odd = code not in _RIGHT or late
                codes[f"{code} of {path}: {details[:80]}, sent {sent[0][:40]!r}" if odd else code] += 1
            except asyncio.CancelledError:  # gRPC's client cancels its own call where it can't send on
                if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                    raise
                codes[_ENDED_EARLY] += 1

    await asyncio.gather(*[caller(number) for number in range(_AT_ONCE)])
    for channel in channels:
        await channel.close()
    return codes


_LIMITS = Limits(peak_megabytes=600.0)

# Without model control: a mutated message may well unload a model, as its caller may.
_FLAGS = tuple(flag for flag in flags() if flag != "--model-control")

CASES = (Case("mutated messages of all methods", partial(attack, messages=_IN_TEST), _RIGHT, flags=_FLAGS, limits=_LIMITS),)


async def _run(messages: int, front: str) -> int:
    """Warms the service up with a tenth of the messages, then sends all, and prints the report."""
    limits = Limits(peak_megabytes=_LIMITS.peak_megabytes, kept_megabytes=_LIMITS.peak_megabytes)
    warming = replace(CASES[0], attack=partial(attack, messages=messages // 10), limits=limits)
    with stages.stage() as stage:
        warm = await stage.run(warming, front)
        flat = replace(limits, kept_megabytes=0.1 * warm.after)
        report = await stage.run(replace(CASES[0], attack=partial(attack, messages=messages), limits=flat), front)
    print(report, *faults(report), sep="\n")
    return bool(faults(report))


def main() -> None:
    """Reads the number of messages and the front from the command line."""
    parser = argparse.ArgumentParser(prog="tests.robustness.mutations", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--front", choices=BOTH, default=BOTH[0], help="(default: %(default)s)")
    options = parser.parse_args()
    stages.ATTACK_SECONDS = 24 * 3600
    sys.exit(asyncio.run(_run(options.messages, options.front)))


if __name__ == "__main__":
    main()
