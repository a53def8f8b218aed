"""README.md and serving/README.md run as printed, links lead somewhere, and maps of packages name all modules."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import readme_tables
from tests.support import document_reader
from tests.support.markdown_blocks import Block, blocks, missing_programs

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "serving/README.md")
NOT_RUN = {
    "it runs this test",
    "it installs from a package index",
    "it needs PostgreSQL",
    "it needs a GPU",
    "it needs an OpenTelemetry collector",
    "it needs an idle machine",
}


def tracked(pattern: str) -> list[str]:
    """Returns the tracked files that match a pattern, relative to the root, without those that the working tree lacks."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", pattern]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def packages_with_a_map() -> list[str]:
    """Returns the packages of serving and training whose modules are written by hand."""
    found = {str(Path(name).parent) for name in tracked("serving/*.py") + tracked("training/*.py")}
    packages = sorted(name for name in found if (ROOT / name / "__init__.py").is_file())
    return [name for name in packages if name != "serving" and Path(name).parts[1:2] != ("pb",)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_of_a_readme_run_as_printed(document: str) -> None:
    problems = []
    missing: set[str] = set()
    with document_reader.reader() as reader:
        for block in blocks((ROOT / document).read_text()):
            missing |= (lacking := missing_programs(block))
            if not lacking and (problem := reader.run(block).problem):
                problems.append(f"{document}:{block.line}: {problem}")
    assert not problems, "\n\n".join(
        [*problems, f"python -m tests.support.document_reader {document} writes the new outputs"]
    )
    if missing:
        pytest.skip(f"all other blocks ran as printed; one needs {', '.join(sorted(missing))}: apt-get install it")


def test_blocks_that_are_not_run_have_one_of_the_known_reasons() -> None:
    found = [block for document in DOCUMENTS for block in blocks((ROOT / document).read_text())]
    reasons = [block.no_run for block in found if block.no_run is not None]
    assert set(reasons) == NOT_RUN
    assert len(reasons) == len(NOT_RUN), "a reason stands for one block"


def test_a_block_whose_output_differs_is_a_problem(tmp_path: Path) -> None:
    with document_reader.Reader(tmp_path, {"8001": "1", "8002": "2"}) as reader:
        same = Block("console", "$ echo 0.25; echo 8\n0.75\n8\n", 1)
        other = Block("console", "$ echo 0.25; echo 8\n0.75\n9\n", 1)
        failing = Block("sh", "false\ntrue\n", 1)
        unknown = Block("shell", "true\n", 1)
        raising = Block("python", "print(1)\nraise ValueError('no')\n", 1)
        assert reader.run(same).problem is None
        assert reader.run(other).body == "$ echo 0.25; echo 8\n0.25\n8\n"
        assert "exit status 1" in str(reader.run(failing).problem)
        assert "no info string" in str(reader.run(unknown).problem)
        assert "ValueError: no" in str(reader.run(raising).problem)


def test_tables_of_settings_and_metrics_are_those_of_the_code() -> None:
    text = readme_tables.README.read_text()
    assert readme_tables.with_tables(text) == text, "make readme"


def test_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_placeholder_is_left_in_a_readme(document: str) -> None:
    assert not re.search(r"\b(BENCH|COMMIT|SETTINGS|METRICS|TODO)\b", (ROOT / document).read_text())


def test_readme_tree_names_every_package_of_serving() -> None:
    packages = {Path(name).parts[1] for name in tracked("serving/*") if len(Path(name).parts) > 2}
    tree = re.search(r"^serving/ .*\n((?:  .*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert tree is not None
    assert set(re.findall(r"^  (\w+)/ ", tree[1], re.MULTILINE)) == packages


@pytest.mark.parametrize("package", packages_with_a_map())
def test_the_map_of_a_package_names_all_of_its_modules(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text()
    described = ast.get_docstring(ast.parse(text)) or ""
    modules = {Path(name).stem for name in tracked(f"{package}/*.py") if (ROOT / name).parent == ROOT / package}
    modules -= {"__init__", "__main__"}
    assert [module for module in sorted(modules) if not names(described, module)] == []
    assert set(re.findall(r"(?<![\w/.])(\w+)\.py\b", described)) <= modules, "the map names a file that does not exist"


def names(described: str, module: str) -> bool:
    """Tests if a map has a module: at the start of a line, in backticks, or as the target of an arrow."""
    module = rf"{module}(\.py)?"
    forms = (rf"^[\s│|-]*{module}(?=:| {{2}}| ->)", rf"`{module}`", rf"[─-]> {module}\b")
    return any(re.search(form, described, re.MULTILINE) for form in forms)


def test_every_verb_of_the_makefile_is_in_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert described <= set(phony[1].split())
    assert set(phony[1].split()) - described == {"lint", "types"}, "parts of `make check`"


def test_every_verb_that_a_document_names_exists() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    for name in tracked("*.md"):
        named = set(re.findall(r"`make ([a-z-]+)|^\$ make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert {one or other for one, other in named} <= set(phony[1].split()), name


def test_links_between_documents_lead_to_files_and_headings() -> None:
    broken = []
    for name in tracked("*.md"):
        for target, heading in links((ROOT / name).read_text()):
            file = (ROOT / name).parent / target if target else ROOT / name
            if not file.exists():
                broken.append(f"{name}: {target} does not exist")
            elif heading and heading not in anchors(file.read_text()):
                broken.append(f"{name}: {target} has no heading #{heading}")
    assert not broken, "\n".join(broken)


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yields path and anchor of each relative link of a Markdown text, outside its code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE):
        if not re.match(r"[a-z]+:", target):
            path, _, heading = target.partition("#")
            yield path, heading


def anchors(text: str) -> set[str]:
    """Returns the anchors of a Markdown text, made of its headings as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeats = found.get(anchor, 0)
        found[anchor] = repeats + 1
        names.add(f"{anchor}-{repeats}" if repeats else anchor)
    return names | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
