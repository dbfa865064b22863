"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` under a temporary name in the same folder, then rename it to `path`; return `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, content: str) -> Path:
    """Write text as UTF-8 with Unix line ends, whole or not at all; return `path`."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON, whole or not at all; return `path`."""
    return write_text(path, json.dumps(value, indent=1) + "\n")
