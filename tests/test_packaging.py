"""What is built from a clone is whole: every module is in a package, and git ignores none of them."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "harness", "methods", "reports")
MODULES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py") if "time" not in path.parts)


def test_every_module_lies_in_a_package() -> None:
    assert len(MODULES) > 100
    assert {path.parent for path in MODULES if not (path.parent / "__init__.py").is_file()} == set()
    assert {path.name for path in (ROOT / "clmem").iterdir() if path.is_symlink()} == set(FOLDERS)


def test_git_ignores_no_module() -> None:
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    names = "\n".join(str(path) for path in MODULES)
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode > 1:
        pytest.skip("not a checkout of git's")
    assert done.stdout == ""


def test_the_package_says_that_it_has_types() -> None:
    assert files("clmem").joinpath("py.typed").is_file()
    assert re.search(r'^"clmem" = \["py\.typed"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_version_is_the_same_everywhere() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version is not None
    assert cited is not None
    assert version.group(1) == cited.group(1)
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
