"""Puts the documents, the published pages and a reference of the public modules into one site (`tox -e docs`).

The documents keep their places, so that a link that leads somewhere in the repository leads there in the site too.
A link that leads nowhere, and a module that cannot be read, end the build.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "reports/published/**/*.md")
MODULES = (
    "clmem.bench.api",
    "clmem.methods.base",
    "clmem.methods.parts.reservoir",
    "clmem.harness.specs.run",
    "clmem.harness.specs.suite",
    "clmem.harness.specs.targets",
    "clmem.harness.specs.budgets",
    "clmem.harness.specs.techniques",
    "clmem.harness.techniques.registry",
    "clmem.harness.techniques.technique",
    "clmem.harness.results.record",
    "clmem.harness.results.footprint",
    "clmem.harness.results.metrics",
    "clmem.harness.learning.registry",
    "clmem.harness.runs.runner",
    "clmem.harness.answers.prediction",
    "clmem.harness.answers.fit",
    "clmem.harness.errors",
    "clmem.reports.report",
)
"""What a program that uses clmem imports."""


def assemble() -> None:
    """Copy the documents with the plots that they show into a folder of their own, and add the reference's pages."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for document in (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))):
        text = document.read_text(encoding="utf-8")
        page = SOURCE / document.relative_to(ROOT)
        page.parent.mkdir(parents=True, exist_ok=True)
        # a code host reads markdown inside of HTML, this generator only where it is told to
        page.write_text(text.replace("<details>", '<details markdown="1">'), encoding="utf-8")
    for plot in (ROOT / "reports" / "published").glob("*/plots/*.png"):
        copy = SOURCE / plot.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plot, copy)
    listed = ["# Python modules", "", "What a program imports, as its docstrings describe it.", ""]
    (SOURCE / "reference").mkdir()
    for module in MODULES:
        first = (ast.get_docstring(ast.parse(source_of(module).read_text(encoding="utf-8"))) or "").split("\n")[0]
        listed.append(f"- [{module}]({module}.md): {first}")
        (SOURCE / "reference" / f"{module}.md").write_text(f"# {module}\n\n::: {module}\n", encoding="utf-8")
    (SOURCE / "reference" / "index.md").write_text("\n".join(listed) + "\n", encoding="utf-8")


def source_of(module: str) -> Path:
    """Return the file of one of our modules."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


if __name__ == "__main__":
    assemble()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
