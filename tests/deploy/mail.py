"""Traffic of every kind, valid and invalid, so that every metric has data."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client import NO_DIGIT, Decision, DigitClient, Field, Recognition
from serving.pb.digits.v1 import digit_service_pb2 as digits
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as inference
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.support.calls import TIMEOUT
from tests.support.model_files import SPECK

Images = NDArray[np.uint8]
Answer = Recognition | Field

_CONNECTIONS = 4  # enough that each worker most likely has one
_UNCERTIFIED = 1e-6  # no version is certified for this error rate, so every answer is rejected


class Mail:
    """A sorter, a keying desk and an auditor, active within a block.

    Attributes:
        rounds: completed rounds.
    """

    def __init__(self, address: str, images: Images, labels: NDArray[np.uint8], crop: Path):
        """Prepares the traffic, which starts with the block.

        Args:
            address: host:port of the service.
            images: (n, 28, 28) uint8.
            labels: (n,) uint8, the digits of the images.
            crop: a PNG file of a digit.
        """
        self.rounds = 0
        self._address, self._images, self._labels, self._crop = address, images, labels, crop.read_bytes()
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mail")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure and not error:
            raise self._failure

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                clients = [stack.enter_context(DigitClient(self._address, TIMEOUT)) for _ in range(_CONNECTIONS)]
                channel = stack.enter_context(grpc.insecure_channel(self._address))
                while not self._stopped.wait(0.05):
                    client = clients[self.rounds % len(clients)]
                    self._report(client, self._read(client))
                    self._infer(GRPCInferenceServiceStub(channel))
                    self._err(DigitServiceStub(channel))
                    self.rounds += 1
        except BaseException as error:
            self._failure = error

    def _read(self, client: DigitClient) -> list[tuple[Answer, str]]:
        """Calls every reading method. Returns each answer with the true digits."""
        start = self.rounds * 100 % (len(self._images) - 500)
        images, labels = self._images[start : start + 500], self._labels[start : start + 500]
        answers: list[tuple[Answer, str]] = [(client.recognize(SPECK), NO_DIGIT)]
        for image, label in zip(images[:10], labels, strict=False):
            answers.append((client.recognize(image), str(label)))
        answers += zip(client.recognize_batch(images), map(str, labels), strict=True)
        for index in range(0, 20, 5):
            value = "".join(map(str, labels[index : index + 5]))
            answers.append((client.read_field(images[index : index + 5]), value))
            answers.append((client.read_field(images[index : index + 5], target_error_rate=_UNCERTIFIED), value))
        for index, answer in client.recognize_stream(images[:10], target_error_rate=_UNCERTIFIED):
            assert isinstance(answer, Recognition), answer
            answers.append((answer, str(labels[index])))
        client.recognize(self._crop)
        client.recognize(np.zeros((28, 28), np.uint8))
        return answers

    def _report(self, client: DigitClient, answers: Sequence[tuple[Answer, str]]) -> None:
        """Reports truth about audited, rejected and some other answers. The desk makes one error."""
        audited = [(answer, true) for answer, true in answers if answer.audit]
        keyed = [(answer, true) for answer, true in answers if answer.decision is not Decision.ACCEPT]
        if audited:
            client.report_truth(audited, "audit")
        if keyed:
            answer, true = keyed[-1]
            mistaken = str((int(true[0]) + 1) % 10) + true[1:]
            client.report_truth([*keyed[:-1], (answer, mistaken)], "keying")
        client.report_truth(answers[:5], "replay")

    def _infer(self, stub: GRPCInferenceServiceStub) -> None:
        request = inference.ModelInferRequest(model_name="digits", raw_input_contents=[self._images[:8].tobytes()])
        request.inputs.add(name="images", datatype="UINT8", shape=(8, 28, 28))
        stub.ModelInfer(request, timeout=TIMEOUT)

    def _err(self, stub: DigitServiceStub) -> None:
        """Makes the typical errors of callers: an invalid image, an unknown model, a deadline that is too short."""
        mistakes: list[Callable[[], object]] = [
            lambda: stub.Recognize(digits.RecognizeRequest(image=b"no image"), timeout=TIMEOUT),
            lambda: stub.Recognize(digits.RecognizeRequest(image=bytes(784), model="letters"), timeout=TIMEOUT),
            lambda: stub.RecognizeBatch(digits.RecognizeBatchRequest(images=self._images.tobytes()), timeout=0.001),
            lambda: stub.ReadField(digits.ReadFieldRequest(images=self._images[:5].tobytes()), timeout=0.001),
        ]
        for mistake in mistakes:
            with suppress(grpc.RpcError):
                mistake()
