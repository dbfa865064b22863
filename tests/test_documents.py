"""What the documents say is true: their commands exist, their example works, their map names what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import typer

from clmem.bench.app import app
from clmem.harness.learning.registry import method_names
from clmem.harness.networks.registry import build_network
from clmem.harness.results.record import Footprint
from clmem.harness.runs.job import Job
from clmem.harness.runs.processes import Workers
from clmem.harness.specs.run import RunSpec
from clmem.methods.parts.sparse_training import masked_weights

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines(document: Path) -> list[str]:
    """Command lines in fenced blocks (prompts stripped, continuation lines joined)."""
    fenced = re.findall(r"```(\w*)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    blocks = [text for language, text in fenced if language in ("", "bash", "sh", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines]


COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix(".venv/bin/")
        for document in DOCUMENTS
        for line in shell_lines(document)
        if line.removeprefix(".venv/bin/").startswith("clmem ")
    }
)


def test_the_readme_shows_commands() -> None:
    assert any(command.startswith("clmem run") for command in COMMANDS)
    assert any(command.startswith("clmem measure") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_parses(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    subcommand = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert subcommand.make_context(name, arguments).params


def test_tox_environments_named_in_documents_exist() -> None:
    known = set(re.findall(r"\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text()))
    for document in DOCUMENTS:
        for names in re.findall(r"tox(?: devenv)? -e ([\w,]+)", document.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= known, f"{document.name}: {names}"


def test_ci_calls_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    steps = next(line for line in shell_lines(ROOT / "README.md") if "tox -e tests" in line).split(" && ")
    assert all(step in script for step in steps)


def contributing_example(holds: str) -> str:
    """Return the Python of CONTRIBUTING.md that holds a text, without its indentation."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [block for _, block in re.findall(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)]
    (found,) = (block for block in blocks if holds in block)
    return dedent(found)


def footprint_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, entry: str, **spec: Any) -> Footprint:
    """Return what a run holds with a module `example` installed that has an entry point."""
    (tmp_path / "example.py").write_text(source)
    info = tmp_path / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job(spec=RunSpec(batch_size=4, buffer_size=8, replay_size=4, **spec), what="attribution")
    outcome = Workers(1).run(job, 120, lambda fields: None)
    assert outcome.status == "ok", outcome.reason
    assert outcome.footprint is not None
    return outcome.footprint


METHOD_ENTRY = "[clmem.methods]\nhardest = example:Hardest\n"


def test_the_contributing_example_is_a_method_that_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = contributing_example("class Hardest")
    footprint = footprint_of(tmp_path, monkeypatch, method, METHOD_ENTRY, method="hardest", width=1)
    assert footprint.role_peaks["replay"] == 8 * (3 * 32 * 32 + 8)


def test_the_contributing_method_may_take_gradients_of_other_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = contributing_example("class Hardest").replace("import Tensor\n", "import Tensor, nn\n")
    adjusted = f"{method}\n{indent(contributing_example('def adjust_gradients'), '    ')}"
    footprint = footprint_of(tmp_path, monkeypatch, adjusted, METHOD_ENTRY, method="hardest", width=1)
    assert footprint.role_peaks["gradients"] >= 2 * footprint.role_peaks["parameters"]


@pytest.mark.parametrize("method", ["er", "tail-sgd", "head-only"])
def test_the_contributing_example_is_a_network_that_methods_learn(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, config = "[clmem.networks]\ntiny = example:TINY\n", {} if method == "er" else {"trunk": "frozen"}
    source = contributing_example("StagedNetwork")
    footprint = footprint_of(
        tmp_path, monkeypatch, source, entry, method=method, network="tiny", width=3, config=config
    )
    classes = 10
    sizes = {"conv1": 3 * 3 * 9 + 3, "conv2": 3 * 3 * 9 + 3, "head": 3 * classes + classes}
    assert footprint.role_peaks["parameters"] == 4 * sum(sizes.values())
    learnt = {"er": ("conv1", "conv2", "head"), "tail-sgd": ("conv2", "head"), "head-only": ("head",)}[method]
    assert footprint.role_peaks["gradients"] == 4 * sum(sizes[name] for name in learnt)


def test_every_method_file_is_a_method() -> None:
    files = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__", "base"}
    assert {name.replace("-", "_") for name in method_names()} >= files


def mapped_paths() -> set[str]:
    """Return the path of every folder and module that the map names, by its indentation."""
    tree = re.search(r"```\n(bench/.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    paths: set[str] = set()
    folders: list[str] = []
    for line in tree.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        names = re.split(r"\s{2,}", line.strip())[0]
        for name in names.split(", "):
            paths.add("/".join([*folders, name.rstrip("/")]))
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
    return paths


def test_the_map_names_every_module_by_its_path() -> None:
    modules = {
        str(path.relative_to(ROOT).with_suffix(""))
        for folder in ("bench", "harness", "reports")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__" and "time" not in path.parts
    }
    named = mapped_paths()
    assert modules - named == set(), "modules that the map lacks"
    files = {path for path in named if not (ROOT / path).is_dir()}
    assert files - modules == set(), "paths of the map that are not there"


def folder_of(module: str) -> str:
    """Return the folder that a module lies in, below `clmem`."""
    parts = module.split(".")[1:]
    return "/".join(parts if (ROOT / "/".join(parts)).is_dir() else parts[:-1])


def test_no_folder_imports_another_that_leads_back_to_it() -> None:
    """A folder and one inside it may, because they are one subject."""
    imported: dict[str, set[str]] = {}
    for top in ("bench", "harness", "methods", "reports"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            names = re.findall(r"from (clmem\.[\w.]+) import", path.read_text(encoding="utf-8"))
            imported.setdefault(folder, set()).update({folder_of(name) for name in names} - {folder})

    def reaches(one: str, seen: frozenset[str] = frozenset()) -> set[str]:
        direct = {other for other in imported.get(one, ()) if other not in seen}
        return direct.union(*(reaches(other, seen | direct | {one}) for other in direct))

    circles = {
        (one, other)
        for one in imported
        for other in reaches(one)
        if one in reaches(other) and not f"{one}/".startswith(f"{other}/") and not f"{other}/".startswith(f"{one}/")
    }
    assert circles == set()


def test_no_document_or_source_names_a_machine() -> None:
    pattern = re.compile(r"/(?:home|root|Users)/\w+|/wo" + r"rk/")
    for path in [
        *DOCUMENTS,
        *(p for folder in ("bench", "harness", "methods", "reports") for p in (ROOT / folder).rglob("*.py")),
    ]:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_the_arithmetic_of_sparse_weights_is_right() -> None:
    shapes = masked_weights(build_network("resnet18", num_classes=10, width=64, seed=0)).values()
    number = sum(weight.numel() for weight in shapes)
    sizes = [(number * ((1 - sparsity) * 4 + 1 / 8)) / 2**20 for sparsity in (0.75, 0.9, 0.95)]
    text = " ".join((ROOT / "docs" / "memory-of-methods.md").read_text(encoding="utf-8").split())
    few, fewer, fewest = (f"{size:.1f}" for size in sizes)
    assert f"{4 * number / 2**20:.1f} MiB dense, take {few}, {fewer} and {fewest} MiB at sparsities" in text
