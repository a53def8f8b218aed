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
The model sees 28x28 pixels. A PNG of that size, or a file of 784 raw bytes, is
sent as it is. Any other image is framed first, as MNIST frames its digits;
`digits frame FILE` shows the result.

A line ends with the decision: accept, or reject_ and the reason. After
reject_no_digit comes the probability that the image shows one whole digit.

examples:
  digits recognize serving/samples/7.png serving/samples/photo.jpg
  digits recognize --crops --target-error-rate 0.002 serving/samples/photo.jpg
  digits recognize --ids serving/samples/7.png    # then: digits truth ID 7
  digits recognize --json *.png | jq -r 'select(.decision != "accept").file'

exit status:
  0  every file was answered
  1  a file can't be read, or the service refused a call; stderr gives the reason
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
    for part in _calls(images.read("recognize", options.files, crops=options.crops)):
        recognitions = client.recognize_batch(
            images.pack([image for _, image in part]),
            model=options.model,
            key=options.key,
            target_error_rate=options.target_error_rate,
        )
        answered += len(part)
        for (file, _), recognition in zip(part, recognitions, strict=True):
            print(_json(file, recognition) if options.json else _text(file, recognition, ids=options.ids))
            if recognition.trouble:
                print(f"digits recognize: {file}: {recognition.trouble}", file=sys.stderr)
                failed = True
    return int(failed or answered < len(options.files))


def _calls(files: Iterable[tuple[Path, images.Image]]) -> Iterator[list[tuple[Path, images.Image]]]:
    """Splits the files into calls, bounded by images and by bytes."""
    part: list[tuple[Path, images.Image]] = []
    size = 0
    for file, image in files:
        more = len(image) if isinstance(image, bytes) else image.nbytes
        if part and (len(part) == _IMAGES_PER_CALL or size + more > _BYTES_PER_CALL):
            yield part
            part, size = [], 0
        part.append((file, image))
        size += more
    if part:
        yield part


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
