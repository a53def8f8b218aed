"""A short run of the fuzz test of the front, so that a change that breaks it or the front shows at once."""

import subprocess
import sys


def test_mutated_conversations_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.fuzz.http2", "--seed", "7", "--groups", "300"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "echoed" in run.stdout
