import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.training_runs import epochs_in, fit, interrupted_in_the_second_epoch, same, small, tiny
from training.dataset import Examples

if TYPE_CHECKING:
    from training.fit import Fit

EPOCHS = 5


@pytest.fixture(scope="module")
def finished(some: Examples, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Fit, Path]":
    """A finished run of `tiny` over one epoch with seed 1, and its checkpoint."""
    checkpoint = tmp_path_factory.mktemp("finished") / "checkpoint.npz"
    return fit(tiny(), some, some[:0], 1, 1, checkpoint), checkpoint


@pytest.fixture
def checkpoint(finished: "tuple[Fit, Path]", tmp_path: Path) -> Path:
    """A copy of its checkpoint."""
    return Path(shutil.copy(finished[1], tmp_path))


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(some: Examples, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    code = f"""
from pathlib import Path
from tests.support.drawings import draw_many
from tests.support.training_runs import fit, small
from training.dataset import Examples
some = Examples(*draw_many(300, seed=2))
fit(small(), some, some[:50], 1, {EPOCHS}, Path({str(checkpoint)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        wait_for(lambda: checkpoint.exists() and epochs_in(checkpoint) >= 2)
        killed.send_signal(signal.SIGKILL)
    done = epochs_in(checkpoint)
    assert 2 <= done < EPOCHS, "it was not killed in the middle"

    resumed = fit(small(), some, some[:50], 1, EPOCHS, checkpoint)
    unbroken = fit(small(), some, some[:50], 1, EPOCHS)
    assert len(resumed.history["loss"]) == EPOCHS
    assert resumed.history["loss"] == pytest.approx(unbroken.history["loss"], rel=1e-5)
    assert resumed.history["val_loss"] == pytest.approx(unbroken.history["val_loss"], rel=1e-5)
    assert same(resumed, unbroken)


def test_a_finished_run_is_not_trained_again(
    some: Examples, finished: "tuple[Fit, Path]", checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finished[0]
    capsys.readouterr()
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    output = capsys.readouterr().out
    assert "resume     after epoch 1" in output
    assert "Epoch" not in output
    assert (again.history, again.seconds) == (first.history, first.seconds)
    np.testing.assert_allclose(
        again.network.predict(pixels(some), verbose=0), first.network.predict(pixels(some), verbose=0)
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-2000]),
        lambda file: file.write_bytes(b""),
        lambda file: np.savez(file, about=np.array('{"history": {}}')),
    ],
    ids=["truncated", "empty", "incomplete"],
)
def test_a_damaged_checkpoint_is_ignored(
    some: Examples,
    finished: "tuple[Fit, Path]",
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    damage(checkpoint)
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    assert "can't be read" in capsys.readouterr().err
    assert same(finished[0], again)


def test_a_checkpoint_of_other_data_is_ignored(some: Examples, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), some[:290], some[:0], 1, 1, checkpoint)
    assert "belongs to a run with other data or settings; starting from the beginning" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_ignored(
    some: Examples, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small(), some, some[:0], 1, 1, checkpoint)  # it has more weights than the checkpoint
    assert "belongs to a run with other data or settings; starting from the beginning" in capsys.readouterr().err


def test_a_checkpoint_of_another_backend_is_used_only_if_finished(
    some: Examples,
    finished: "tuple[Fit, Path]",
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training.batches import Batches

    pretend_jax(checkpoint)
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    assert (again.backend, again.history) == ("jax", finished[0].history)
    assert "Epoch" not in capsys.readouterr().out

    half = tmp_path / "half.npz"
    with monkeypatch.context() as patch:
        patch.setattr("training.fit.Batches.begin", interrupted_in_the_second_epoch(Batches.begin))
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), some, some[:0], 1, 2, half)
    assert epochs_in(half) == 1
    pretend_jax(half)
    restarted = fit(tiny(), some, some[:0], 1, 2, half)
    assert "was written by an unfinished run on jax, and this is tensorflow" in capsys.readouterr().err
    assert (restarted.backend, len(restarted.history["loss"])) == ("tensorflow", 2)
    assert same(restarted, fit(tiny(), some, some[:0], 1, 2)), "the restarted run began with weights of the checkpoint"


def test_a_full_disk_ends_a_run_and_keeps_the_last_checkpoint(some: Examples, checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint.read_bytes()
    (tmp_path / ".checkpoint.npz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fit(tiny(), some, some[:0], 1, 2, checkpoint)
    assert checkpoint.read_bytes() == before


def pretend_jax(checkpoint: Path) -> None:
    """Rewrites a checkpoint as if another backend had written it."""
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    about = json.loads(str(arrays["about"]))
    about |= {"backend": "jax"}
    np.savez(checkpoint, **arrays | {"about": np.array(json.dumps(about))})


def pixels(examples: Examples) -> NDArray[np.float32]:
    return examples.images[..., None].astype(np.float32)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in 250 seconds"
        time.sleep(0.02)


def test_ctrl_c_ends_a_run_with_advice_and_publishes_nothing(mnist_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "run", "cnn6k", "--epochs", "200", "--models", str(tmp_path)]
    command += ["--data", str(mnist_path)]

    def handle_interrupts() -> None:  # a shell disables them for background processes
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=handle_interrupts
    ) as run:
        checkpoint = tmp_path / "digits" / ".cnn6k-seed0-epochs200.npz"
        wait_for(checkpoint.exists)
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "digits-train: interrupted; run the same command again to resume after the last complete epoch" in complaint
    assert "Traceback" not in complaint
    assert [file.name for file in (tmp_path / "digits").iterdir()] == [checkpoint.name]
