"""Fenced code blocks of Markdown, and the comparison of an expected output with a real one.

The info string of a block gives its language, then its role:

    sh                      a script; every command must succeed.
    console                 commands after `$ `, each with its output, which is compared.
    sh serve, console serve a server, which runs until the next such block; later blocks call it.
    python                  run in one interpreter per document, so that later blocks use the names of earlier ones.
    text output             the output of the Python block above.
    json log, json log stop lines that the server has logged since; `stop` first sends it SIGTERM.
    toml FILE               the content of FILE, which later blocks load.
    promql                  a query that Prometheus' parser must accept.
    text                    a diagram or a tree: not run.
    LANGUAGE no-run: REASON not run; a test holds the list of reasons.

In an expected output, a line `…` stands for any lines and `…` in a line for any text. Versions, times, ids and other numbers
that differ from run to run are compared by form.
"""

import re
import shutil
from dataclasses import dataclass

_FENCE = re.compile(r"^ *```(.*)$")

# Parts of an output that differ between runs or machines, with the form that replaces them on both sides of a comparison.
_VARIABLE = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d+(Z|\+00:00)?", "<time>"),
    (r"\b20\d{12}\b", "<model version>"),
    (r"(\"pid\": ?)\d+", r"\1<pid>"),
    (r"(ipv4:127\.0\.0\.1:)\d+", r"\1<port>"),
    (r"\b[0-9a-f]{40}(-dirty)?|\bunknown\b", "<commit>"),
    (r"\b([0-9a-f]{32}|[0-9a-f]{16})\b", "<trace id>"),
    (r"(?=[\w-]*[A-Z0-9])[\w-]{40,}", "<id>"),
    (r"\d+\.\d+([eE]-?\d+)?", "<number>"),
    (r"[ \t]+", " "),
)


@dataclass
class Block:
    """One fenced block.

    Attributes:
        info: the info string, such as `console serve`.
        body: the text between the fences.
        line: line of the opening fence, from 1.
    """

    info: str
    body: str
    line: int

    @property
    def language(self) -> str:
        return self.info.split(" ")[0]

    @property
    def role(self) -> str:
        return self.info.partition(" ")[2]

    @property
    def no_run(self) -> str | None:
        """The reason why the block is not run; None where it is."""
        return self.role.removeprefix("no-run: ") if self.role.startswith("no-run: ") else None


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a Markdown text, in order."""
    found: list[Block] = []
    opened: tuple[str, int, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened = (fence[1].strip(), number, [])
        elif fence and opened is not None:
            found.append(Block(opened[0], "".join(f"{one}\n" for one in opened[2]), opened[1]))
            opened = None
        elif opened is not None:
            opened[2].append(line)
    if opened is not None:
        raise ValueError(f"line {opened[1]}: a fenced block is not closed")
    return found


def session(body: str) -> list[tuple[str, str]]:
    """Returns the commands of a console session, each with its expected output. A trailing backslash continues a command."""
    commands: list[tuple[str, str]] = []
    continued = False
    for line in body.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:] + "\n", ""))
        elif not commands:
            raise ValueError(f"a console session begins with a command after `$ `, not with {line!r}")
        elif continued:
            commands[-1] = (commands[-1][0] + line + "\n", "")
        else:
            commands[-1] = (commands[-1][0], commands[-1][1] + line + "\n")
        continued = line.endswith("\\") and not commands[-1][1]
    return commands


def matches(expected: str, actual: str) -> bool:
    """Returns True where an output is the expected one, up to the parts that differ from run to run."""
    expected, actual = _normalize(expected), _normalize(actual)
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*".join(re.escape(part) for part in line.split("…")) + r"\n"
        for line in expected.splitlines()
    ]
    return re.fullmatch("".join(lines), actual) is not None


def _normalize(text: str) -> str:
    for pattern, form in _VARIABLE:
        text = re.sub(pattern, form, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def missing_programs(block: Block) -> set[str]:
    """Returns the programs that a block names and this machine lacks, among those that a plain Debian may lack."""
    named = {"curl", "openssl"} & set(re.findall(r"[\w-]+", block.body)) if block.language in ("sh", "console") else set()
    return {name for name in named if shutil.which(name) is None}
