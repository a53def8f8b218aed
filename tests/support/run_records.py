"""Run records of versions that were not trained: that of the bundled model, with changes."""

import json
from pathlib import Path

from tests.support.model_files import bundled


def write_record(version: Path, **changes: object) -> Path:
    """Writes run.json into the directory of a version, which is made if needed; returns the directory."""
    version.mkdir(parents=True, exist_ok=True)
    record = json.loads(bundled().with_name("run.json").read_text())
    (version / "run.json").write_text(json.dumps(record | changes))
    return version
