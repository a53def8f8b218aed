import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.errors import RateLimited
from tests.security.conftest import OpenTokens, settle
from tests.support.credentials import TOKEN, bearer, entry


def test_a_client_may_send_one_second_at_once_then_gets_a_retry_time(open_tokens: OpenTokens) -> None:
    authenticator = open_tokens(entry("sorter-7", more="images_per_second = 100") + entry("desk", "d3"))
    client = authenticator.authenticate(bearer(TOKEN), "recognize")
    for _ in range(10):
        client.spend(10)
    with pytest.raises(RateLimited, match="client sorter-7 has used up its 100 images a second") as refusal:
        client.spend(100)
    assert 0 < (refusal.value.retry_after_seconds or 0) <= 1
    authenticator.authenticate(bearer("d3"), "recognize").spend(1_000_000)


def test_a_call_larger_than_one_second_is_accepted_and_paid_off_later(open_tokens: OpenTokens) -> None:
    authenticator = open_tokens(entry("sorter-7", more="images_per_second = 100"))
    client = authenticator.authenticate(bearer(TOKEN), "recognize")
    client.spend(10_000)
    with pytest.raises(RateLimited) as refusal:
        client.spend(1)
    assert 90 < (refusal.value.retry_after_seconds or 0) <= 99.01


def test_refunded_images_can_be_spent_again_and_no_more(open_tokens: OpenTokens) -> None:
    client = open_tokens(entry("sorter-7", more="images_per_second = 0.001")).authenticate(bearer(TOKEN), "recognize")
    for _ in range(3):
        client.spend(1)
        client.give_back(1)
    client.spend(1)
    with pytest.raises(RateLimited):
        client.spend(1)


def test_a_client_that_retries_when_asked_gets_its_rate(open_tokens: OpenTokens) -> None:
    client = open_tokens(entry("sorter-7", more="images_per_second = 2000")).authenticate(bearer(TOKEN), "recognize")
    start, sent = time.monotonic(), 0
    while time.monotonic() < start + 0.5:
        try:
            client.spend(50)
            sent += 50
        except RateLimited as refusal:
            time.sleep(refusal.retry_after_seconds or 0)
    elapsed = time.monotonic() - start
    assert sent <= 2000 + 2000 * elapsed
    assert sent >= 2000 + 2000 * 0.25, (
        "the burst of one second, and half of the half second after it: a margin for a busy machine"
    )


def test_charged_images_stay_charged_when_the_token_file_changes(open_tokens: OpenTokens, tokens: Path) -> None:
    authenticator = open_tokens(entry("sorter-7", more="images_per_second = 10"))
    authenticator.authenticate(bearer(TOKEN), "recognize").spend(1000)
    tokens.write_text(
        entry("desk", "d3", more="images_per_second = 10") + entry("sorter-7", "new", more="images_per_second = 20")
    )
    settle(authenticator)
    with pytest.raises(RateLimited, match="20 images"):
        authenticator.authenticate(bearer("new"), "recognize").spend(1)
    authenticator.authenticate(bearer("d3"), "recognize").spend(10)


HAMMER = """
import sys, time
from pathlib import Path
from serving.security.tokens import TokenAuthenticator
from serving.errors import RateLimited
from serving.telemetry.metrics import Metrics

tokens, limits, token = sys.argv[1:]
authenticator = TokenAuthenticator(Path(tokens), Metrics(), Path(limits))
client = authenticator.authenticate((("authorization", f"Bearer {token}"),), "recognize")
print("ready", flush=True)
sys.stdin.readline()
taken, start = 0, time.monotonic()
while (now := time.monotonic()) < start + 0.5:
    try:
        client.spend(1)
        taken += 1
    except RateLimited:
        pass
print(taken, start, now)
"""


def test_processes_with_different_token_files_share_a_clients_limit(
    open_tokens: OpenTokens, tokens: Path, tmp_path: Path
) -> None:
    limits, other = tmp_path / "limits", tmp_path / "other.toml"
    limited = entry("sorter-7", more="images_per_second = 1000")
    authenticator = open_tokens(entry("desk", "d3", more="images_per_second = 100") + limited, limits)
    other.write_text(limited)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(path), str(limits), TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in (tokens, other)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    ended = []
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        taken, start, end = process.communicate(timeout=60)[0].split()
        ended.append((int(taken), float(start), float(end)))
    span = max(end for _, _, end in ended) - min(start for _, start, _ in ended)
    assert 1000 <= sum(taken for taken, _, _ in ended) <= 1000 + 1000 * span + 1
    authenticator.authenticate(bearer("d3"), "recognize").spend(100)
    assert limits.stat().st_mode & 0o777 == 0o600
