import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    protos = [str(file.relative_to(ROOT)) for file in (ROOT / "protos").rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iserving/pb=protos", *out, *protos]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    generated = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.py*")}
    committed = {
        file.relative_to(ROOT): file.read_text()
        for file in (ROOT / "serving" / "pb").rglob("*.py*")
        if "__pycache__" not in file.parts
    }
    assert generated == committed, "run `make protos`"
