"""`digits loadtest`: measures throughput and latency of a running service; serving/loadtest/ does the work."""

import sys

from serving.cli import connection
from serving.cli.manual import new_parser

_MANUAL = """\
measurement:
  --callers runs a closed loop: each caller sends its next call when the last
  one is answered. It measures the highest throughput. --rate runs an open
  loop: calls are sent at their due times, as mail arrives. Latency counts
  from the due time, also while the service hangs. --find-knee doubles the
  rate until an objective breaks, then closes in on the highest rate that
  keeps all objectives: the capacity of one replica. A rate counts as too high
  once it broke an objective three times in a row. If calls of an open loop
  are sent late, which adds to their latency, stderr reports it. calls/s
  counts the right answers that arrived during the measurement.

  The sender is late when it sends calls of an open loop 10 ms after their due
  time or later, or when its event loop lags by as much; with --slo by a tenth
  of the strictest time, if that is longer. Calls due in such a window of 0.1
  s are discarded, except wrong answers; the column "late windows" counts the
  windows. If more than half are late, all calls count, and a missed objective
  ends with status 1, not 3: the sender may have caused it.

objectives:
  p50=5ms, p99=20ms, p99.9=0.1s: this percentage of the answers arrives within
  the time. errors=0.1%: at most this share of the calls ends without a right
  answer. For each percentile that is kept, the output states the confidence
  that all calls would keep it: 99 % for p99 needs 459 calls, none later, or
  12,571 calls, 100 of them later. Below 99 % it says how many calls are
  missing; the exit status is 0 all the same. The images are samples of all
  ten digits; an answer is right if it names the digit.

Run it on another machine than the service, with as many --processes as that
machine has cores: the load test takes CPU time from the service. Do not use a
service for real mail: its counts of digits, its drift and its captured images
would include those of the test.

examples:
  digits loadtest --callers 32 --seconds 10
  digits loadtest --rate 2000 --slo p99=20ms,errors=0.1%
  digits loadtest --protocol connect --callers 32
  digits loadtest --rpc field --find-knee --slo p99=20ms --png knee.png

exit status:
  0  measured, and every objective kept
  1  not measured, or an objective was missed while the sender was late
  2  wrong usage
  3  an objective was missed
"""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    from serving.loadtest import flags

    parser = new_parser("loadtest", "Measures throughput and latency of a running service.", _MANUAL)
    connection.add_flags(parser)
    flags.add_arguments(parser)
    options = connection.parse(parser, arguments)
    plan = flags.read_plan(parser, options)
    try:
        from serving.loadtest import command
    except ModuleNotFoundError as error:
        remedy = "install this package with its extra [loadtest]; in a checkout: pip install -e '.[loadtest]'"
        print(f"digits loadtest: {error.name} is missing: {remedy}", file=sys.stderr)
        return 1
    from serving.client import CredentialsError, channel_credentials
    from serving.loadtest.calls import GrpcTarget
    from serving.loadtest.connect import ConnectTarget

    try:
        token = connection.read_token(options)
        if options.tls_ca:  # checked once here, rather than in each process of the test
            channel_credentials(options.tls_ca, options.tls_certificate, options.tls_key)
    except CredentialsError as error:
        print(f"digits loadtest: {error}", file=sys.stderr)
        return 1
    kind = ConnectTarget if options.protocol == "connect" else GrpcTarget
    target = kind(options.address, options.tls_ca, options.tls_certificate, options.tls_key, token)
    return command.run(plan, target, options)
