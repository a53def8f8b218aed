"""`digits truth`: reports the true value of an answer, as a keying desk or an audit does."""

import argparse

from serving.cli import connection
from serving.cli.manual import new_parser, utf8_text
from serving.client import NO_DIGIT, DigitClient

_DESCRIPTION = "Reports the true value of an answer, which the service counts in its accuracy metrics."

_MANUAL = """\
`digits recognize --ids` and `digits field` print the id of an answer. An answer
of `digits recognize` that shares its id with others has an --index as well.

The letter x stands for an image that does not show one whole digit.

sources:
  keying   a person keyed a rejected image
  audit    a person looked at an answer that was marked for audit
  replay   the image was sent to test the service, and its value was known

examples:
  digits truth ID 7
  digits truth ID --index 3 7
  digits truth ID x                       # the image shows no digit
  digits truth ID 90x10                   # nor does the third image of this field
  digits truth --source replay ID 90210

The metrics count the first truth about an answer from each source. A service
that captures images stores every truth, and training learns from the last one:
to correct a truth, report the answer again.

exit status:
  0  counted, or counted before
  1  the service refused the call; stderr gives the reason
  2  wrong usage
"""

_NOT_AGAIN = "counted before, from the source {source}: metrics keep the first value, captured images take this one"


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = new_parser("truth", _DESCRIPTION, _MANUAL)
    parser.add_argument("recognition_id", type=utf8_text, metavar="RECOGNITION_ID", help="id of the answer")
    parser.add_argument("value", type=_value, metavar="VALUE", help="true digit, or all digits of the field; x for no digit")
    parser.add_argument(
        "--source", choices=("keying", "audit", "replay"), default="keying", help="see below (default: %(default)s)"
    )
    parser.add_argument(
        "--index", type=_index, default=0, metavar="N", help="index of the image in its call, from 0 (default: %(default)s)"
    )
    connection.add_flags(parser)
    options = connection.parse(parser, arguments)
    return connection.call("truth", options, lambda client: _report(client, options))


def _report(client: DigitClient, options: argparse.Namespace) -> int:
    """Reports the value and prints the outcome; returns the exit status."""
    truth = (options.recognition_id, options.index, options.value)
    counted = client.report_truth([truth], options.source)
    print("counted" if counted else _NOT_AGAIN.format(source=options.source))
    return 0


def _value(text: str) -> str:
    if not text or set(text) - set("0123456789" + NO_DIGIT):
        raise argparse.ArgumentTypeError(
            f"expected one digit, or the digits of a field, or {NO_DIGIT} for no digit, not {text!r}"
        )
    return text


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, not {text!r}")
    return int(text)
