import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The packages and modules of `serving`, from the bottom up: each may import those before it.
ORDER = [
    *["build_info", "contract", "cores", "errors", "imaging", "samples"],
    *["settings", "ports"],
    "answers",
    "telemetry",
    *["security", "feedback", "client"],
    "call",
    *["inference", "loadtest"],
    "repository",
    "recognition",
    "api",
    *["transport", "web"],
    "process",
    *["cli", "readme_tables", "__main__"],
]


# And of the training half: the road of a run, from left to right, then what looks at its results.
TRAINING_ORDER = [
    *[
        "dataset",
        "captured_images",
        "augmentation",
        "architectures",
        "recipes",
        "files",
        "fit",
        "calibrate",
        "drift_reference",
        "evaluate",
        "certify",
        "assess",
        "robustness",
    ],
    *[
        "export",
        "quantize",
        "model_card",
        "version_directory",
        "verify",
        "pipeline",
        "catalogue",
        "figures",
        "report",
        "studies",
    ],
    *["compare", "commands", "__main__"],
]


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
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


@pytest.mark.parametrize(
    ("half", "other", "but"), [("serving", "training", ""), ("training", "serving", "serving.imaging.framing")]
)
def test_neither_half_imports_the_other_except_for_the_shared_framing(half: str, other: str, but: str) -> None:
    for file in (ROOT / half).rglob("*.py"):
        allowed = {but, f"{but}.frame", f"{but}.measure"} if but else set()
        assert not {name for name in imports(file) if name.split(".")[0] == other} - allowed, file
    assert not imports(ROOT / "serving" / "imaging" / "framing.py") & {"serving", "training"}


@pytest.mark.parametrize(("half", "order"), [("serving", ORDER), ("training", TRAINING_ORDER)])
def test_imports_within_a_half_point_one_way(half: str, order: list[str]) -> None:
    parts: dict[str, list[Path]] = {}
    for file in (ROOT / half).rglob("*.py"):
        parts.setdefault(file.relative_to(ROOT / half).with_suffix("").parts[0], []).append(file)
    assert set(parts) - {"__init__", "pb"} == set(order)
    for place, name in enumerate(order):
        names = set().union(*(imports(file) for file in parts[name]))
        used = {module.split(".")[1] for module in names if module.startswith(f"{half}.")} - {"pb", name}
        assert used <= set(order[:place]), f"{name} imports {used - set(order[:place])}"


def test_importing_the_whole_serving_half_loads_neither_tensorflow_nor_keras() -> None:
    code = (
        "import sys, serving.process.worker, serving.client, serving.cli.check\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    assert "PIL" not in loaded, "only crops need it, and whoever sends none starts sooner"
    assert not {"tensorflow", "keras", "tf2onnx", "onnx", "training"} & set(loaded)


@pytest.mark.parametrize("half", ["serving.inference.model", "training.verify"])
def test_onnx_runtime_leaves_no_trace_of_its_use_and_reports_it_to_nobody(half: str, tmp_path: Path) -> None:
    code = f"import {half}, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1]); print('ran')"
    model = next((ROOT / "serving" / "models").rglob("model.onnx"))
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code, str(model)]
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(command, env=environment | home, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "ran"
    assert not [file for file in tmp_path.rglob("*") if "Microsoft" in str(file)]
