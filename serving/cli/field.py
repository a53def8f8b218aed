"""`digits field`: sends the images of one field, such as a postcode, and prints the answer."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.cli import connection, images
from serving.cli.manual import new_parser, utf8_text
from serving.client import DigitClient, Field
from serving.client.image_files import ImageError
from serving.client.requests import Images

_DESCRIPTION = "Sends the image files of one field, such as a postcode, and prints its value, confidence and decision."

_MANUAL = """\
Give the files in order, from left to right: one digit each, 18 at most. Files
that all have 28x28 pixels are sent as images that are framed already. Otherwise
all files are sent as they are, as crops, and the service frames them. A file of
784 raw bytes can't be a crop.

The service gives one answer and one decision for the whole field, and the three
most probable digits of each image with their probabilities. If images do not
show one whole digit, the answer names them, with the probability that they do.

examples:
  digits field serving/samples/field/*.jpg
  digits field --lexicon zip serving/samples/field/*.jpg
                            # needs digits serve --lexicons serving/samples/lexicons
  digits field --json serving/samples/field/*.jpg | jq -r .recognition_id

exit status:
  0  the field was answered, accepted or rejected
  1  a file can't be read, here or by the service, or the service refused the call;
     stderr gives the reason
  2  wrong usage
"""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = new_parser("field", _DESCRIPTION, _MANUAL)
    images.add_flags(parser, files="image of one digit of the field, as `digits recognize` takes it; left to right")
    parser.add_argument(
        "--lexicon",
        type=utf8_text,
        default="",
        metavar="NAME",
        help="answer with the most probable code in this lexicon of the service",
    )
    connection.add_flags(parser)
    options = connection.parse(parser, arguments)
    files = list(images.read("field", options.files, crops=options.crops))
    if len(files) < len(options.files):
        return 1  # a field without one of its digits is another field
    try:
        sent = images.pack(files)
    except ImageError as error:
        print(f"digits field: {error}", file=sys.stderr)
        return 1
    return connection.call("field", options, lambda client: _read_field(client, sent, options))


def _read_field(client: DigitClient, sent: Images, options: argparse.Namespace) -> int:
    """Sends the images and prints the answer; returns the exit status."""
    answer = client.read_field(
        sent,
        lexicon=options.lexicon,
        model=options.model,
        key=options.key,
        target_error_rate=options.target_error_rate,
        priority=options.priority,
    )
    print(_json(answer) if options.json else _text(answer, options.files))
    for index, reason in sorted(answer.troubles.items()):
        print(f"digits field: {options.files[index]}: {reason}", file=sys.stderr)
    return int(bool(answer.troubles))


def _text(answer: Field, files: Sequence[Path]) -> str:
    rows = [("value", answer.value), ("confidence", f"{answer.confidence:.4f}"), ("decision", answer.decision.name.lower())]
    for number, index in enumerate(answer.no_digits):
        rows.append(("" if number else "no digit", f"image {index + 1}, {files[index]} ({answer.whole[index]:.4f})"))
    for index, candidates in enumerate(_candidates(answer)):
        shown = "  ".join(f"{digit} {probability:.4f}" for digit, probability in candidates.items())
        rows.append(("" if index else "candidates", shown))
    if answer.audit:
        rows.append(("audit", "yes"))
    rows.append(("id", answer.recognition_id))
    return "\n".join(f"{name:<10}  {value}" for name, value in rows)


def _json(answer: Field) -> str:
    return json.dumps(
        {
            "value": answer.value,
            "confidence": round(answer.confidence, 6),
            "decision": answer.decision.name.lower(),
            "candidates": _candidates(answer),
            "whole": [round(share, 6) for share in answer.whole],
            "no_digits": list(answer.no_digits),
            "threshold": answer.threshold,
            "target_error_rate": answer.target_error_rate,
            "version": answer.model_version,
            "recognition_id": answer.recognition_id,
            "audit": answer.audit,
            "captured": answer.captured,
        }
    )


def _candidates(answer: Field) -> list[dict[int, float]]:
    """Returns for each image the probabilities of its three most probable digits, the most probable first."""
    pairs = zip(answer.candidates.tolist(), answer.probabilities.tolist(), strict=True)
    return [{digit: round(p, 6) for digit, p in zip(digits, shares, strict=True)} for digits, shares in pairs]
