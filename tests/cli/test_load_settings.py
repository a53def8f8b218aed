import argparse
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.cli import load_settings
from serving.cli.load_settings import SettingsError
from serving.settings import GROUPS, Settings
from tests.support.calls import TIMEOUT
from tests.support.service import DIGITS


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without settings; a test adds its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("DIGITS_"):
                patch.delenv(name)
        yield patch


def file(directory: Path, text: str) -> str:
    path = directory / "digits.toml"
    path.write_text(text)
    return str(path)


def mistakes(flags: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load_settings.read(flags)
    return raised.value.mistakes


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "1000"}  # for help without line breaks
    return subprocess.run(
        [*DIGITS, *arguments], capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


def test_a_flag_overrides_the_environment_which_overrides_the_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = file(tmp_path, "grpc_port = 1\nmetrics_port = 1\ndrain_seconds = 1")
    environment.setenv("DIGITS_GRPC_PORT", "2")
    environment.setenv("DIGITS_METRICS_PORT", "2")
    settings = load_settings.read({"config": config, "grpc_port": "3"})
    assert (settings.grpc_port, settings.metrics_port, settings.drain_seconds) == (3, 2, 1.0)
    assert settings.grace_seconds == Settings().grace_seconds
    environment.setenv("DIGITS_CONFIG", config)
    assert load_settings.read({}).drain_seconds == 1.0


def test_the_settings_class_reads_neither_the_environment_nor_a_file(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DIGITS_GRPC_PORT", "2")
    assert Settings().grpc_port == 8001


@pytest.mark.parametrize(("cores", "instances"), [(1, 1), (2, 2), (64, 2)])
def test_instances_are_two_on_machines_with_two_cores_or_more(
    environment: pytest.MonkeyPatch, cores: int, instances: int
) -> None:
    environment.setattr("serving.settings.usable_cores", lambda: cores)
    assert Settings().instances == instances


def test_settings_come_back_from_json_as_they_were(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings.read({"config": file(tmp_path, "host = '::1'"), "max_batch_size": "7"})
    (tmp_path / "digits.toml").unlink()
    environment.setenv("DIGITS_MAX_BATCH_SIZE", "8")
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_every_mistake_is_named_at_once_as_it_was_set(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = file(tmp_path, "grace_seconds = -1\ngrpc_prot = 8001\nlog_level = 'info'")
    environment.setenv("DIGITS_DRAIN_SECONDS", "soon")
    environment.setenv("DIGITS_LOG_LEVEL", "loud")
    assert mistakes({"config": config, "grpc_port": "70000"}) == [
        f"grpc_prot in {config}: no such setting; did you mean grpc_port?",
        "DIGITS_LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error', not 'loud'",
        "--grpc-port: Input should be less than or equal to 65535, not '70000'",
        "DIGITS_DRAIN_SECONDS: Input should be a valid number, unable to parse string as a number, not 'soon'",
        f"grace_seconds in {config}: Input should be greater than or equal to 0, not -1",
    ]


def test_settings_that_contradict_each_other_are_named_as_they_were_set(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("DIGITS_MAX_QUEUE_SIZE", "10")
    config = file(tmp_path, "max_images_per_request = 11")
    (mistake,) = mistakes({"config": config})
    assert mistake.startswith(f"DIGITS_MAX_QUEUE_SIZE (10) is below max_images_per_request in {config} (11): ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"grpc_port = 1\ngrpc_port\n", r"not TOML: .*at line 2, column 10"),
        (b"host = '\xff'", "not UTF-8 text"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_mistake_beside_the_others(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "digits.toml"
    if content is not None:
        path.write_bytes(content)
    found = mistakes({"config": str(path), "grpc_port": "x", "max_queue_size": "1"})
    assert re.fullmatch(f"{re.escape(str(path))}: {complaint}.*", found[0])
    assert [mistake.split(":")[0] for mistake in found[1:]] == ["--grpc-port"]


def test_a_file_cannot_name_another_and_a_directory_is_no_file(tmp_path: Path) -> None:
    config = file(tmp_path, "config = 'other.toml'")
    assert mistakes({"config": config}) == [f"config in {config}: no such setting"]
    assert mistakes({"config": str(tmp_path)}) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_an_empty_variable_counts_as_not_set(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DIGITS_CONFIG", "")
    environment.setenv("DIGITS_GRPC_PORT", "")
    assert load_settings.read({}).grpc_port == 8001


def test_variables_that_kubernetes_sets_for_a_service_are_recognized(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DIGITS_GRPC_PORT", "tcp://10.0.0.1:8001")
    (mistake,) = mistakes({})
    assert "enableServiceLinks: false" in mistake
    environment.delenv("DIGITS_GRPC_PORT")
    environment.setenv("DIGITS_GRPC_PORT_8001_TCP", "tcp://10.0.0.1:8001")
    environment.setenv("DIGITS_DRAIN_SECOND", "1")
    environment.setenv("DIGITS_TOKEN", "secret")
    environment.setenv("DIGITS_MODELS", "models")
    assert load_settings.unknown_variables() == [
        "DIGITS_DRAIN_SECOND; did you mean DIGITS_DRAIN_SECONDS?",
        "DIGITS_GRPC_PORT_8001_TCP",
    ]


def test_an_unknown_flag_is_refused_even_if_it_is_a_prefix_of_one() -> None:
    refused = run("serve", "--drain", "1", "--grpc-prot=9001", "--metrics-port", "x")
    assert refused.returncode == 2
    assert [line.split(", ")[0] for line in refused.stderr.splitlines()] == [
        "digits serve: --drain: no such setting",
        "digits serve: --grpc-prot: no such setting; did you mean --grpc-port?",
        "digits serve: --metrics-port: Input should be a valid integer",
    ]
    assert run("serve", "now").stderr == "digits serve: now: no such setting\n"


def test_settings_that_cannot_be_used_end_both_commands_with_status_2(tmp_path: Path) -> None:
    config = file(tmp_path, "port = 1")
    for command in ("serve", "check"):
        refused = run(command, "--config", config, "--grpc-port", "-1")
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"digits {command}: port in {config}: no such setting",
            f"digits {command}: --grpc-port: Input should be greater than or equal to 0, not '-1'",
        ]


def test_the_manual_has_every_setting_in_its_group_with_its_default() -> None:
    manual = " ".join(run("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f" --{name.replace('_', '-')} " in manual
        assert field.description
        assert f"{field.description} (default: " in manual
    assert "(default: 8001)" in manual
    groups = [manual.index(f" {title}: ") for title in GROUPS.values()]
    assert groups == sorted(groups)
    assert GROUPS.keys() <= Settings.model_fields.keys()
    for part in ("where settings come from:", "ports:", "signals:", "exit status:"):
        assert part in manual


def test_boolean_flags_need_no_value() -> None:
    parser = argparse.ArgumentParser()
    load_settings.add_flags(parser)
    assert load_settings.given(parser.parse_args([])) == {}
    for name, field in Settings.model_fields.items():
        if field.annotation is bool:
            flag = f"--{name.replace('_', '-')}"
            assert load_settings.given(parser.parse_args([flag])) == {name: "true"}
            assert load_settings.given(parser.parse_args([flag, "false"])) == {name: "false"}
