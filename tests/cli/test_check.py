import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.settings import BUNDLED
from serving.telemetry.multiprocess_metrics import DIRECTORY
from tests.support.calls import TIMEOUT
from tests.support.model_files import place, publish, publish_contract_1, publish_whole
from tests.support.service import DIGITS


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with three equal versions of one model."""
    for number in (1, 2, 3):
        publish(tmp_path / "models", number)
    return tmp_path / "models"


def check(*flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*DIGITS, "check", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)


def test_versions_without_mistakes_are_shown_in_a_table() -> None:
    found = check(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert (found.returncode, found.stderr) == (0, "")
    head, *rows = (line.split() for line in found.stdout.splitlines())
    assert head == ["MODEL", "VERSION", "RECIPE", "PRECISION", "ACCURACY", "CONTRACT", "WHOLE", "ROLE", "STATE"]
    expected = []
    for name, recipe in (("digits", "folded"), ("digits-flagship", "flagship")):
        numbers = sorted((path.name for path in (BUNDLED / name).iterdir()), reverse=True)
        for number, precision, role in zip(numbers, ("int8", "fp32"), ("stable", "-"), strict=True):
            expected.append([name, number, recipe, precision, role, "loads"])
    assert [row[:4] + row[7:] for row in rows] == expected
    assert all(float(row[4]) >= 0.994 for row in rows)


def test_roles_are_those_that_the_routing_gives(models: Path) -> None:
    (models / "digits" / "routing.toml").write_text("stable = 1\n[canary]\nversion = 3\npercent = 10")
    found = check("--models", str(models))
    assert found.returncode == 0
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert [(row[1], row[7]) for row in rows] == [("3", "canary"), ("2", "-"), ("1", "stable")]


def test_each_version_is_shown_with_its_contract_and_whole_threshold(tmp_path: Path) -> None:
    publish_contract_1(tmp_path / "models", 1)
    publish_whole(tmp_path / "models", 2, threshold="0.1446")
    place(tmp_path / "models", 3).write_bytes(b"no model")
    found = check("--models", str(tmp_path / "models"))
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert [(row[1], row[5], row[6]) for row in rows] == [("3", "-", "-"), ("2", "2", "0.1446"), ("1", "1", "-")]


def test_all_mistakes_are_named_at_once(models: Path) -> None:
    (models / "digits" / "routing.toml").write_text("stable = 3\n[canary]\nversion = 7\npercent = 10")
    (models / "digits" / "latest").mkdir()
    for broken in (place(models, 2), models / "digits" / "latest" / "model.onnx", place(models, 1, "other")):
        broken.write_bytes(b"no model")
    (models / "other" / "routing.toml").write_text("stabel = 1")
    found = check("--models", str(models), DIGITS_DRAIN_SECOND="1", OTEL_TRACES_EXPORTER="zipkin")
    assert found.returncode == 1
    complaints = found.stderr.replace("digits check: ", "").replace(f"{models}/", "").splitlines()
    assert [complaint.split(": ")[0] for complaint in complaints if complaint.startswith("warning: ")] == ["warning"] * 2
    assert complaints[0] == "warning: no such setting: DIGITS_DRAIN_SECOND; did you mean DIGITS_DRAIN_SECONDS?"
    assert complaints[1] == "warning: digits/latest is skipped: its name is not a whole number without leading zeros"
    assert [complaint[:45] for complaint in complaints[2:]] == [
        text[:45]
        for text in (
            "digits/routing.toml: version 7 is not in the repository",
            "digits/2/model.onnx cannot be loaded: it is not an ONNX file",
            "other/routing.toml: stabel: Extra inputs are not permitted",
            "other/1/model.onnx cannot be loaded: it is not an ONNX file",
            "other: no version can be stable, so the model could not answer",
            "OTEL_TRACES_EXPORTER: unknown exporter zipkin, expected otlp",
        )
    ]
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert [(row[0], row[1], row[7], row[8]) for row in rows] == [
        ("digits", "3", "stable", "loads"),
        ("digits", "2", "-", "refused"),
        ("digits", "1", "-", "loads"),
        ("other", "1", "-", "refused"),
    ]


def test_credentials_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    tokens, key = tmp_path / "tokens.toml", tmp_path / "key.pem"
    tokens.write_text("[clients.desk]\ntoken_sha256 = 'short'\nroles = ['recognise']")
    key.write_text("no key")
    found = check("--tokens", str(tokens), "--tls-key", str(key), "--tls-certificate", str(tmp_path / "none.pem"))
    assert found.returncode == 1
    certificate, clients = found.stderr.splitlines()
    assert certificate == f"digits check: {tmp_path}/none.pem cannot be read: No such file or directory"
    assert clients.startswith(f"digits check: {tokens}: clients.desk.token_sha256: ")
    assert "clients.desk.roles" in clients
    assert "short" not in clients


def test_a_repository_that_is_not_there_or_lacks_the_default_model_is_named(tmp_path: Path, models: Path) -> None:
    found = check("--models", str(tmp_path / "nowhere"))
    assert found.returncode == 1
    assert found.stderr == f"digits check: {tmp_path}/nowhere cannot be read: No such file or directory\n"
    found = check("--models", str(models), "--default-model", "other")
    assert found.returncode == 1
    assert found.stderr.startswith(f"digits check: no model in {models}: expected {models}/other/VERSION/model.onnx")


@pytest.mark.parametrize("spelling", [str.upper, str.lower])
def test_a_directory_for_the_metrics_of_workers_is_left_alone(tmp_path: Path, spelling: Callable[[str], str]) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        assert check(**{spelling(DIRECTORY): str(directory)}).returncode == 0
    assert not [*tmp_path.iterdir()]


def test_no_port_is_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert check("--grpc-port", port, "--metrics-port", port).returncode == 0


def test_a_lexicon_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "zip.txt").write_text("90210\n9O210\n")
    found = check("--lexicons", str(tmp_path))
    assert found.returncode == 1
    assert found.stderr == (
        f"digits check: the lexicon {tmp_path}/zip.txt, line 2: '9O210' is not a code, expected 1 to 18 digits\n"
    )


def test_an_unusable_key_file_is_a_mistake_and_audits_without_keys_a_warning(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("short")
    found = check("--recognition-key", str(tmp_path / "keys"))
    assert found.returncode == 1
    assert (
        f"digits check: {tmp_path}/keys holds no usable keys, expected one a line, of 16 characters or more" in found.stderr
    )
    found = check("--audit-rate", "0.1")
    assert found.returncode == 0
    assert "digits check: warning: answers are marked for audit, but without --recognition-key" in found.stderr


def test_a_capture_database_is_tested_and_not_created(tmp_path: Path) -> None:
    file = tmp_path / "captured.db"
    found = check("--capture", f"sqlite:///{file}")
    assert found.returncode == 0
    assert "warning: images are captured, but without --recognition-key any caller can report their truth" in found.stderr
    assert not file.exists()
    found = check("--capture", f"sqlite:///{tmp_path}/none/captured.db")
    assert found.returncode == 1
    assert "none is not a writable directory" in found.stderr
    file.write_text("no database, although it is long enough to be read as the header of one" * 2)
    found = check("--capture", f"sqlite:///{file}")
    assert found.returncode == 1
    assert f"cannot store images in sqlite:///{file}: file is not a database" in found.stderr
    found = check("--capture", "postgresql://digits:do-not-show-me@127.0.0.1:1/digits")
    assert found.returncode == 1
    assert "digits check: --capture: cannot store images in postgresql://digits:***@127.0.0.1:1/digits: " in found.stderr
    assert "do-not-show-me" not in found.stderr


def test_a_model_that_accepts_nothing_is_a_warning() -> None:
    found = check("--target-error-rate", "0.0001")
    assert found.returncode == 0
    warned = [line for line in found.stderr.splitlines() if "has no certified threshold for an error rate of 0.0001" in line]
    assert len(warned) == 2, "those that would serve"
