import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The packages and modules of `serving`, from the bottom up: each may import those before it.
ORDER = [
    *["build_info", "child_process", "client", "contract", "cores", "disk_thread", "errors", "imaging", "regular_file"],
    "samples",
    *["settings", "ports", "peers"],
    "answers",
    "telemetry",
    *["security", "feedback"],
    "call",
    *["inference", "loadtest"],
    "repository",
    "recognition",
    "api",
    *["transport", "web"],
    "process",
    *["cli", "readme_tables", "__main__"],
]


# The modules of `training` in the order of a run, then those that read its results: each may import those before it.
TRAINING_ORDER = [
    *[
        "dataset",
        "capture_database",
        "captured_images",
        "sources",
        "augmentation",
        "architectures",
        "objective",
        "synthesis",
        "recipes",
        "hyperparameters",
        "sketch",
        "files",
        "batches",
        "progress",
        "fit",
        "calibrate",
        "drift_reference",
        "whole",
        "evaluate",
        "certify",
        "mail",
        "certificates",
        "exported",
        "assess",
        "damage",
        "robustness",
        "non_digits",
    ],
    *[
        "export",
        "quantize",
        "model_card",
        "version_directory",
        "cascade",
        "verify",
        "recipe_file",
        "teacher",
        "make_version",
        "pipeline",
        "combine",
        "own_mail",
        "catalogue",
        "figures",
        "report",
        "studies",
    ],
    *["compare", "commands", "argument_types", "parser", "__main__"],
]


def imports(file: Path) -> set[str]:
    """Lists the modules that a file imports, at its top or inside functions, with the names imported from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parent.parts[: -(node.level - 1) or None] if node.level else ()
            module = ".".join((*package, *([node.module] if node.module else [])))
            found.update((module, *(f"{module}.{alias.name}" for alias in node.names)))
    return found


def test_the_client_imports_nothing_of_the_service_but_stubs() -> None:
    for file in (ROOT / "serving" / "client").glob("*.py"):
        used = {name for name in imports(file) if name.split(".")[0] in ("serving", "training")}
        assert not [name for name in used if not name.startswith(("serving.client", "serving.pb.digits"))], file


# What training must apply exactly as the service does: the framing of a digit, the framing of a crop, the lookup of a field.
SHARED = ("serving.imaging.framing", "serving.imaging.crop", "serving.imaging.headers", "serving.answers.lexicon")


@pytest.mark.parametrize(("half", "other", "shared"), [("serving", "training", ()), ("training", "serving", SHARED)])
def test_neither_half_imports_the_other_except_for_what_both_must_share(
    half: str, other: str, shared: tuple[str, ...]
) -> None:
    for file in (ROOT / half).rglob("*.py"):
        used = {name for name in imports(file) if name.split(".")[0] == other}
        assert not {name for name in used if not name.startswith(shared)}, file
    for module in SHARED:
        assert not [name for name in imports(ROOT / f"{module.replace('.', '/')}.py") if name.startswith("training")]


def test_the_framing_of_a_digit_needs_numpy_alone() -> None:
    loaded = imports(ROOT / "serving" / "imaging" / "framing.py")
    assert {name.split(".")[0] for name in loaded} - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize(("half", "order"), [("serving", ORDER), ("training", TRAINING_ORDER)])
def test_imports_within_a_half_point_one_way(half: str, order: list[str]) -> None:
    parts: dict[str, list[Path]] = {}
    for file in (ROOT / half).rglob("*.py"):
        parts.setdefault(file.relative_to(ROOT / half).with_suffix("").parts[0], []).append(file)
    assert set(parts) - {"__init__", "pb"} == set(order)
    for index, name in enumerate(order):
        names = set().union(*(imports(file) for file in parts[name]))
        used = {module.split(".")[1] for module in names if module.startswith(f"{half}.")} - {"pb", name}
        assert used <= set(order[:index]), f"{name} imports {used - set(order[:index])}"


def load(*modules: str) -> set[str]:
    """Imports modules in a new process; returns the packages that it has loaded then."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_serving_half_loads_no_training_library_and_no_pillow() -> None:
    training = {"tensorflow", "keras", "tf2onnx", "onnx", "training"}
    loaded = load("serving.process.worker", "serving.client", "serving.cli.findings", "serving.cli.truth")
    assert "onnxruntime" in loaded
    assert not {"PIL", "cv2"} & loaded, "only crops need OpenCV, and a service without crops starts sooner"
    assert not training & loaded
    assert not training & load("serving.cli.recognize", "serving.cli.field")  # these read image files with Pillow


@pytest.mark.parametrize(
    ("module", "foreign"),
    [("serving.api.dispatch", {"grpc"}), ("serving.recognition.recognizer", {"grpc", "google"})],
)
def test_dispatcher_and_recognizer_know_no_transport(module: str, foreign: set[str]) -> None:
    assert not load(module) & foreign


@pytest.mark.parametrize("module", ["serving.inference.model", "training.verify"])
def test_onnx_runtime_runs_without_telemetry(module: str, tmp_path: Path) -> None:
    code = f"import {module}, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1]); print('ran')"
    model = next((ROOT / "serving" / "models").rglob("model.onnx"))
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code, str(model)]
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(command, env=environment | home, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "ran"
    assert not [file for file in tmp_path.rglob("*") if "Microsoft" in str(file)]
