"""Fuzz test of the HTTP/2 front: `python -m tests.fuzz.http2 SECONDS`, or `make fuzz`.

Mutated conversations of clients go to connections in this process, a few clients at once. Any error other than an orderly
end, anything left once the clients have gone, and growing memory end the run with a nonzero exit status. The run prints its
seed and the number of the group that failed: `--seed SEED --first GROUP --groups 1` repeats it.
"""

import argparse
import asyncio
import sys
import time
import traceback
from random import Random

from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.transport.http2_front.front import Http2Front
from tests.fuzz.http2.checks import Memory, Watch, check_answers, check_nothing_is_left
from tests.fuzz.http2.client import talk
from tests.fuzz.http2.conversations import conversation, library_conversation
from tests.fuzz.http2.handlers import Handlers
from tests.fuzz.http2.mutations import mutate

_SEEDS = 400  # valid conversations, of which all others are made
_CLIENTS_AT_ONCE = 4
_WARM_UP_GROUPS = 6000
_MEMORY_EVERY = 2000  # groups
_ANSWER_EVERY = 20

# Small limits, so that the conversations reach them.
_LIMITS = {
    "max_calls_per_connection": 20,
    "max_open_calls": 25,
    "max_header_bytes": 2048,
    "max_request_buffer_bytes": 1 << 20,
    "max_answer_buffer_bytes": 1 << 20,
    "max_resets_per_second": 20,
    "max_images_per_request": 1,
}


async def fuzz(seed: int, first: int, groups: float, conversations: float, seconds: float) -> None:
    """Runs groups of clients until one of the bounds is reached.

    Raises:
        Fault: something is left, or memory grows.
        Exception: a connection raised it.
    """
    handlers = Handlers()
    metrics = Metrics()
    front = Http2Front(Settings(grpc_port=0, **_LIMITS), handlers.routes(), None, metrics, shares_port=False)  # type: ignore[arg-type]
    watch, memory = Watch(front.loop), Memory()
    start = Random(seed)  # noqa: S311 - no secret
    seeds = [(library_conversation if number % 4 == 0 else conversation)(start) for number in range(_SEEDS)]
    began = time.monotonic()
    done = received = 0
    group = first
    while group - first < groups and done < conversations and time.monotonic() - began < seconds:
        random = Random(f"{seed} {group}")  # noqa: S311 - no secret
        clients = random.randint(1, _CLIENTS_AT_ONCE)
        try:
            sent = [mutate(random, random.choice(seeds), random.choice(seeds)) for _ in range(clients)]
            talks = [talk(front, random, data, f"10.0.0.{number}") for number, data in enumerate(sent)]
            received += sum(await asyncio.gather(*talks))
            await check_nothing_is_left(front, handlers, watch)
            if group % _ANSWER_EVERY == 0:
                await check_answers(front, handlers)
            if (group - first) % _MEMORY_EVERY == 0 and group - first >= _WARM_UP_GROUPS:
                print(f"{done} conversations, {time.monotonic() - began:.0f} s, {memory.check()}", flush=True)
        except Exception as error:
            error.add_note(f"repeat it: python -m tests.fuzz.http2 --seed {seed} --first {group} --groups 1")
            raise
        done += clients
        group += 1
    elapsed = time.monotonic() - began
    if group - first > _WARM_UP_GROUPS:
        print(memory.check())
    rate = done / time.process_time()
    print(f"{done} conversations in {elapsed:.0f} s, {rate:.0f} a second of CPU, {received >> 20} MB of answers")
    print("calls:", ", ".join(f"{name} {count}" for name, count in sorted(handlers.counts.items())))
    limits = [sample for family in metrics.limits_reached.collect() for sample in family.samples if sample.value]
    print("limits:", ", ".join(f"{one.labels['limit']} {one.value:.0f}" for one in limits if one.name.endswith("_total")))


def main() -> None:
    """Reads the bounds from the command line; without any, it runs until it fails."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.http2", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=float("inf"), help="time to run")
    parser.add_argument("--conversations", type=float, default=float("inf"), help="number of conversations")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="of all randomness")
    parser.add_argument("--first", type=int, default=0, help="number of the first group of clients")
    parser.add_argument("--groups", type=float, default=float("inf"), help="number of groups")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    try:
        asyncio.run(fuzz(options.seed, options.first, options.groups, options.conversations, options.seconds))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
