"""The main program of the child that examines one model file: `python -m serving.repository.quarantine.child PARENT FD`.

PARENT is the process id of the parent, FD an empty memory file. One JSON object a line:

    parent, to standard input                               child, to standard output

    read   path, fingerprint, max_bytes.                    content  sha256; or the verdict, if the file can't be read.
    check  version, provider, max_batch_size,               verdict  reason, message; both empty if the file is sound.
           seconds, memory_bytes.

The child copies the file into the memory file and seals it before the first byte is parsed. Thus nothing that the model
does can change what the parent opens. The heavy imports wait for `check`, which the parent omits if it knows the content.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from serving.regular_file import NotRegular, open_regular

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_CHUNK_BYTES = 1 << 20
_SET_PARENT_DEATH_SIGNAL = 1  # prctl
_NICENESS = 10  # callers come first; at full load a tenth of a core is left

# How ONNX Runtime and the C++ library word a failed allocation.
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "MemoryError")


def main() -> int:
    """Examines one file as the parent asks; returns the exit status."""
    _end_with(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")  # short of memory, the kernel kills this process first
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a model makes ONNX Runtime print is no answer
    memory = int(sys.argv[2])
    wanted = json.loads(sys.stdin.readline())
    try:
        digest = _read(Path(wanted["path"]), wanted["fingerprint"], wanted["max_bytes"], memory)
    except _Unreadable as error:
        print(json.dumps({"reason": error.args[0], "message": error.args[1]}), file=answers)
        return 0
    print(json.dumps({"sha256": digest}), file=answers)
    line = sys.stdin.readline()
    if line:  # else the content is known, or the parent has ended
        reason, message = _check(memory, json.loads(line))
        print(json.dumps({"reason": reason, "message": message}), file=answers)
    return 0


class _Unreadable(Exception):
    """The file can't be read; the arguments are reason and message of the verdict."""


def _end_with(parent: int) -> None:
    """Has the kernel kill this process once its parent is dead, also in the middle of a run."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _read(path: Path, fingerprint: list[int], most_bytes: int, memory: int) -> str:
    """Copies the file into the memory file, and seals it; returns the SHA-256 of the content.

    Raises:
        _Unreadable: the file is not a regular file of this fingerprint and at most `most_bytes` bytes.
    """
    try:
        with os.fdopen(open_regular(path), "rb", 0) as file, os.fdopen(memory, "wb", closefd=False) as copy:
            status = os.fstat(file.fileno())
            if status.st_size > most_bytes:
                raise _Unreadable(
                    "unreadable",
                    f"cannot be loaded: it has {status.st_size} bytes, expected at most {most_bytes} (--max-model-bytes)",
                )
            hasher, size = hashlib.sha256(), 0
            while chunk := file.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > status.st_size:
                    break
                hasher.update(chunk)
                copy.write(chunk)
            now = os.fstat(file.fileno())
    except NotRegular as error:
        raise _Unreadable("unreadable", f"cannot be loaded: {error.strerror}") from None
    except OSError as error:
        raise _Unreadable("environment", f"cannot be read: {error.strerror}") from None
    if size != status.st_size or [now.st_mtime_ns, now.st_size, now.st_ino] != fingerprint:
        raise _Unreadable("environment", "cannot be read: it changed meanwhile")
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
    return hasher.hexdigest()


def _check(memory: int, wanted: dict[str, Any]) -> tuple[str, str]:
    """Loads and tries the file within the limits; returns the reason and the message of the verdict."""
    from serving.inference.external_data import refuse_external_data
    from serving.inference.metadata import ModelError
    from serving.inference.model import open_model, try_batches

    content = os.pread(memory, os.fstat(memory).st_size, 0)
    _limit(wanted["seconds"], wanted["memory_bytes"] if wanted["provider"] == "cpu" else None)
    try:
        refuse_external_data(content)
        model = open_model(content, wanted["version"], wanted["provider"])
        try_batches(model, wanted["max_batch_size"])
    except MemoryError as error:
        return "memory", _memory_message(wanted["memory_bytes"], error)
    except ModelError as error:
        if any(sign in f"{error} {error.__cause__!r}" for sign in _OUT_OF_MEMORY):
            return "memory", _memory_message(wanted["memory_bytes"], error)
        return error.reason, str(error)
    return "", ""


def _memory_message(most_bytes: int, error: Exception) -> str:
    return f"ran out of memory while it was tried with {most_bytes} bytes (--load-memory-bytes): {str(error)[:200]}"


def _limit(seconds: float, memory_bytes: int | None) -> None:
    """Limits the processor time from now on, and the memory beyond what this process has now.

    Args:
        seconds: processor time.
        memory_bytes: address space. None sets no limit: CUDA reserves more than the machine has.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if memory_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(main())
