import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from serving.build_info import commit, version
from serving.cli.main import COMMANDS, main
from serving.samples.draw import SAMPLES
from tests.support.calls import TIMEOUT
from tests.support.service import DIGITS


def test_the_version_names_the_code_python_and_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    expected = f"digits {version()}, commit {commit()}, Python {platform.python_version()}, "
    assert capsys.readouterr().out == f"{expected}onnxruntime {onnxruntime.__version__}\n"


def test_the_version_is_printed_without_importing_onnxruntime() -> None:
    code = "import sys, serving.cli.main as m\ntry: m.main(['--version'])\nfinally: print('onnxruntime' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert ran.stdout.splitlines()[-1] == "False"


def test_a_copy_outside_git_takes_its_commit_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("serving.build_info.__file__", str(tmp_path / "build_info.py"))
    monkeypatch.delenv("DIGITS_COMMIT", raising=False)
    assert commit.__wrapped__() == "unknown"
    monkeypatch.setenv("DIGITS_COMMIT", "abc")
    assert commit.__wrapped__() == "abc"


def test_the_help_describes_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    manual = capsys.readouterr().out
    assert all(f"\n  {command} " in manual for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_manual_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    manual = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"\nexamples:\n  digits {command}" in manual
    assert "\nexit status:\n  0  " in manual


def test_an_unknown_command_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["red"])
    assert ended.value.code == 2
    assert "invalid choice: 'red'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["recognize", "--model", "\udcff", "7.png"], "--model"),
        (["recognize", "--key", "\udcff", "7.png"], "--key"),
        (["recognize", "--address", "\udcff", "7.png"], "--address"),
        (["field", "--lexicon", "\udcff", "7.png"], "--lexicon"),
        (["truth", "\udcff", "7"], "RECOGNITION_ID"),
    ],
)
def test_an_argument_that_is_not_utf8_ends_with_status_2(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"argument {name}: expected UTF-8 text, not '\\udcff'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["frame", str(SAMPLES / "photo.jpg")], ["--version"], ["--help"], ["serve", "--help"], ["check"]],
    ids=["frame", "version", "help", "manual", "check"],
)
def test_an_output_on_a_full_disk_ends_with_status_1(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as output:
        command = [*DIGITS, *arguments]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert (ended.returncode, ended.stderr) == (1, "digits: can't write the output: No space left on device\n")


def test_loadtest_without_its_extra_explains_itself_and_names_the_remedy() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('rich', 'hdrh', 'matplotlib')))"
    program = f"{blocked}; from serving.cli.main import main; sys.exit(main(sys.argv[1:]))"

    def loadtest(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "loadtest", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)

    ran = loadtest("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--find-knee" in ran.stdout
    ran = loadtest("--callers", "0")
    assert (ran.returncode, "must be a whole number" in ran.stderr) == (2, True)
    ran = loadtest()
    expected = "rich.console is missing: install this package with its extra [loadtest]; "
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"digits loadtest: {expected}in a checkout: pip install -e '.[loadtest]'\n"


@pytest.mark.parametrize(
    "arguments",
    [["recognize", "--timeout", "60", str(SAMPLES / "7.png")], ["truth", "--timeout", "60", "ID", "7"]],
    ids=["recognize", "truth"],
)
def test_an_interrupted_call_ends_with_status_130(arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection, never answers
        silent.settimeout(TIMEOUT)
        command = [*DIGITS, arguments[0], "--address", f"127.0.0.1:{silent.getsockname()[1]}", *arguments[1:]]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as calling:
            connection, _ = silent.accept()
            with connection:
                calling.send_signal(signal.SIGINT)
                _, errors = calling.communicate(timeout=TIMEOUT)
    assert (calling.returncode, errors) == (130, "digits: interrupted\n")


def test_an_interrupted_check_ends_with_status_130(tmp_path: Path) -> None:
    config = tmp_path / "digits.toml"
    os.mkfifo(config)  # reading waits for a writer
    command = [*DIGITS, "check", "--config", str(config)]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as checking,
        config.open("w"),  # waits for the reader
    ):
        checking.send_signal(signal.SIGINT)
        _, errors = checking.communicate(timeout=TIMEOUT)
    assert (checking.returncode, errors) == (130, "digits: interrupted\n")


def test_a_closed_pipe_ends_the_output_without_a_message() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as output:
        command = [*DIGITS, "frame", str(SAMPLES / "photo.jpg")]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert (ended.returncode, ended.stderr) == (1, "")
