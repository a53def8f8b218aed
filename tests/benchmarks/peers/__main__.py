"""Check that the peers work on this machine: `python -m tests.benchmarks.peers [NAME ...]` starts each, and sends digits."""

import asyncio
import sys
import time

from serving.repository import versions
from serving.settings import BUNDLED
from tests.benchmarks.peers.peer import PEERS, PeerUnavailable
from tests.benchmarks.peers.running import ask, expected, running
from tests.support.drawings import draw_many


def main(names: list[str]) -> int:
    """Prints a line for each peer; returns 1 if one of them does not work."""
    model = versions.latest(BUNDLED).path
    failed = 0
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        start = time.monotonic()
        try:
            with running(peer, model) as address:
                found = [f"{time.monotonic() - start:.1f} s to the first right digit"]
                for count in (1, 64, 1024):
                    images = draw_many(count, seed=count)[0]
                    code, digits, _ = asyncio.run(ask(peer.target(address), images))
                    found.append(f"{count:,}: {'right' if digits == expected(model, images) else f'wrong ({code})'}")
            print(f"{peer.name} {peer.version()}: {', '.join(found)}", flush=True)
            failed += any("wrong" in one for one in found)
        except PeerUnavailable as why:
            print(f"{peer.name}: not available: {why}", flush=True)
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
