import ast
from pathlib import Path

TESTS = Path(__file__).parent


def imported_at_once(file: Path) -> set[str]:
    """The packages that importing a file imports directly; functions import theirs only when they run."""
    statements = ast.parse(file.read_text()).body
    names = [alias.name for statement in statements if isinstance(statement, ast.Import) for alias in statement.names]
    names += [statement.module or "" for statement in statements if isinstance(statement, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_collecting_the_tests_imports_no_keras() -> None:
    files = {*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py"), *(TESTS / "support").glob("*.py")}
    assert len(files) > 20
    for file in files:
        assert not imported_at_once(file) & {"keras", "tensorflow", "tf2onnx"}, file
