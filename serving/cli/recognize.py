"""`digits recognize`: sends images of single digits and prints the answers."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving.cli import connection, images
from serving.cli.manual import new_parser
from serving.client import Decision, DigitClient, Recognition

_DESCRIPTION = "Sends image files to the service, one digit each, and prints digit, confidence and decision."

_MANUAL = """\
The model sees 28x28 pixels. A PNG or JPEG of that size, or a file of 784 raw
bytes, is sent as an image that is framed already. Any other file is sent as it
is, a crop: the service frames it, as MNIST frames its digits, and rejects what
is not one whole digit. `digits frame FILE` shows the framed image.

A line ends with the decision: accept, or reject_ and the reason. After
reject_no_digit comes the probability that the image shows one whole digit.

examples:
  digits recognize serving/samples/7.png serving/samples/photo.jpg
  digits recognize --target-error-rate 0.002 serving/samples/photo.jpg
  digits recognize --ids serving/samples/7.png    # then: digits truth ID 7
  digits recognize --json *.png | jq -r 'select(.decision != "accept").file'

exit status:
  0  every file was answered, accepted or rejected
  1  a file can't be read, here or by the service, or the service refused a call;
     stderr gives the reason
  2  wrong usage
"""

_IMAGES_PER_CALL = 100
_BYTES_PER_CALL = 3 << 20  # every server takes messages of 4 MiB


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = new_parser("recognize", _DESCRIPTION, _MANUAL)
    images.add_flags(parser, files="PNG or JPEG of one digit, dark on light or light on dark; or 784 raw bytes")
    parser.add_argument(
        "--ids", action="store_true", help="print the id of each answer, in the form that `digits truth` takes"
    )
    connection.add_flags(parser)
    options = connection.parse(parser, arguments)
    return connection.call("recognize", options, lambda client: _recognize(client, options))


def _recognize(client: DigitClient, options: argparse.Namespace) -> int:
    """Sends the files and prints a line for each answer; returns the exit status."""
    answered, failed = 0, False
    for part in _parts(images.read("recognize", options.files, crops=options.crops)):
        answered += len(part)
        for file, recognition in zip(part, _send(client, part, options), strict=True):
            print(_json(file.path, recognition) if options.json else _text(file.path, recognition, ids=options.ids))
            if recognition.trouble:
                print(f"digits recognize: {file.path}: {recognition.trouble}", file=sys.stderr)
                failed = True
    return int(failed or answered < len(options.files))


def _parts(files: Iterable[images.ImageFile]) -> Iterator[list[images.ImageFile]]:
    """Splits the files into parts that a call can carry, bounded by images and by bytes."""
    part: list[images.ImageFile] = []
    size = 0
    for file in files:
        if part and (len(part) == _IMAGES_PER_CALL or size + file.size > _BYTES_PER_CALL):
            yield part
            part, size = [], 0
        part.append(file)
        size += file.size
    if part:
        yield part


def _send(client: DigitClient, part: list[images.ImageFile], options: argparse.Namespace) -> list[Recognition]:
    """Sends the framed images of a part in one call and its crops in another.

    Returns:
        The answers in the order of the files.
    """
    answers: dict[int, Recognition] = {}
    for framed in (True, False):
        places = [place for place, file in enumerate(part) if (file.framed is not None) == framed]
        if places:
            recognitions = client.recognize_batch(
                images.pack([part[place] for place in places]),
                model=options.model,
                key=options.key,
                target_error_rate=options.target_error_rate,
                priority=options.priority,
            )
            answers.update(zip(places, recognitions, strict=True))
    return [answers[place] for place in range(len(part))]


def _text(file: Path, answer: Recognition, *, ids: bool) -> str:
    line = f"{file}  {answer.digit}  {answer.confidence:.4f}  {answer.decision.name.lower()}"
    if answer.decision is Decision.REJECT_NO_DIGIT:
        line += f"  not one whole digit ({answer.whole:.4f})"
    if not ids:
        return line
    return f"{line}  {answer.recognition_id}" + (f" --index {answer.place}" if answer.place else "")


def _json(file: Path, answer: Recognition) -> str:
    return json.dumps(
        {
            "file": str(file).encode("utf-8", "backslashreplace").decode(),  # JSON has no lone surrogates
            "digit": answer.digit,
            "confidence": round(answer.confidence, 6),
            "decision": answer.decision.name.lower(),
            "whole": round(answer.whole, 6),
            "threshold": answer.threshold,
            "target_error_rate": answer.target_error_rate,
            "version": answer.model_version,
            "recognition_id": answer.recognition_id,
            "index": answer.place,
            "audit": answer.audit,
            "captured": answer.captured,
        }
    )
