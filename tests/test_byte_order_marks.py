"""Text files of operators may begin with a byte order mark, as editors of Windows write them."""

import codecs
from pathlib import Path

from serving.answers.lexicon import read_lexicons
from serving.cli import load_settings
from serving.repository.versions import scan
from serving.security import token_file
from tests.support.credentials import entry


def marked(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(codecs.BOM_UTF8 + content.encode())
    return path


def test_settings_tokens_routing_and_lexicons_may_begin_with_a_mark(tmp_path: Path) -> None:
    settings = load_settings.read({"config": str(marked(tmp_path / "digits.toml", "grpc_port = 4\n"))})
    assert settings.grpc_port == 4
    tokens = marked(tmp_path / "tokens.toml", entry("sorter"))
    assert set(token_file.parse(tokens, tokens.read_bytes())) == {"sorter"}
    marked(tmp_path / "models" / "digits" / "1" / "model.onnx", "")
    marked(tmp_path / "models" / "digits" / "routing.toml", "stable = 1\n")
    assert scan(tmp_path / "models")["digits"].routing == "stable = 1\n"
    marked(tmp_path / "lexicons" / "zip.txt", "90210\n10001\n")
    assert set(read_lexicons(tmp_path / "lexicons")) == {"zip"}
