"""Digests of source change with each line that a run can depend on, and looking for those lines runs none of them."""

from __future__ import annotations

import importlib
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clmem.harness.learning.registry import method_class
from clmem.harness.results import source
from clmem.harness.results.source import measuring_digest, method_digest

FILES = {
    "mine/__init__.py": "",
    "mine/idea.py": "from mine.base import Base\nfrom .parts import buffer\nclass Idea(Base):\n    pass\n",
    "mine/base.py": "from clmem.methods.sgd import SGD\nclass Base(SGD):\n    name = 'idea'\n",
    "mine/parts/__init__.py": "",
    "mine/parts/buffer.py": "def late():\n    import mine.deep\n",
    "mine/deep.py": "SIZE = 1\n",
    "mine/other.py": "class Other: pass\n",
}
ALONE = {
    "idea.py": "from helper import SIZE\nclass Idea: pass\n",
    "helper.py": "def late():\n    from help.deep import SIZE\nSIZE = 1\n",
    "help/__init__.py": "",
    "help/deep.py": "SIZE = 1\n",
    "bystander.py": "SIZE = 1\n",
}
NAMES = ("mine", "idea", "helper", "help", "bystander")


def forget() -> None:
    """Forget the modules that these tests write, as a fresh process does."""
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]
    importlib.invalidate_caches()
    source.modules_digest.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def digest(folder: Path, files: dict[str, str] = FILES, module: str = "mine.idea", **changed: str) -> str:
    """Return the digest of Idea with some files changed, as a fresh process would see it."""
    write(folder, {**files, **changed})
    forget()
    return method_digest(importlib.import_module(module).Idea)


# What is seen


@pytest.mark.parametrize("name", FILES)
def test_a_change_in_any_module_of_a_plug_in_is_seen(folder: Path, name: str) -> None:
    before = digest(folder)
    assert digest(folder, **{name: FILES[name] + "# changed\n"}) != before
    assert digest(folder) == before


def test_a_module_that_a_plug_in_imports_by_a_made_up_name_is_seen(folder: Path) -> None:
    idea = "import importlib\nnamed = importlib.import_module('mine.' + 'named')\nclass Idea: SIZE = named.SIZE\n"
    before = digest(folder, **{"mine/idea.py": idea, "mine/named.py": "SIZE = 1\n"})
    assert digest(folder, **{"mine/idea.py": idea, "mine/named.py": "SIZE = 2\n"}) != before


def test_a_compiled_module_of_a_plug_in_is_seen(folder: Path) -> None:
    before = digest(folder, **{"mine/kernel.so": "1"})
    assert digest(folder, **{"mine/kernel.so": "2"}) != before


def test_data_caches_and_hidden_files_of_a_plug_in_are_not_seen(folder: Path) -> None:
    before = digest(folder)
    added = {"mine/data.bin": "1", "mine/__pycache__/old.py": "1", "mine/.trash/old.py": "1", "mine/.#idea.py": "1"}
    assert digest(folder, **added) == before


def test_a_base_in_our_methods_belongs_to_a_plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(folder)
    changed = folder / "sgd.py"
    changed.write_text("# another sgd\n")
    monkeypatch.setattr(sys.modules["clmem.methods.sgd"], "__file__", str(changed))
    assert digest(folder) != before


def test_a_piece_of_our_methods_that_a_plug_in_imports_belongs_to_it(folder: Path) -> None:
    late = FILES["mine/deep.py"] + "def late():\n    from clmem.methods.parts.reservoir import Reservoir\n"
    digest(folder, **{"mine/deep.py": late})
    files = source._method_files(("mine.idea", "mine.base", "clmem.methods.sgd"))
    assert "clmem/methods/parts/reservoir.py" in files
    assert "clmem/methods/er.py" not in files


@pytest.mark.parametrize("name", ["helper.py", "help/__init__.py", "help/deep.py"])
def test_what_a_single_module_imports_from_its_folder_is_seen(folder: Path, name: str) -> None:
    before = digest(folder, ALONE, "idea")
    assert digest(folder, ALONE, "idea", **{name: ALONE[name] + "# changed\n"}) != before


def test_what_lies_beside_a_single_module_without_being_imported_is_not_seen(folder: Path) -> None:
    before = digest(folder, ALONE, "idea")
    assert digest(folder, ALONE, "idea", **{"bystander.py": "SIZE = 2\n"}) == before


@pytest.mark.parametrize(("name", "is_seen"), [("helper.py", True), ("help/deep.py", False)])
def test_packages_beside_an_installed_module_are_other_peoples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_seen: bool
) -> None:
    installed = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(installed))
    before = digest(installed, ALONE, "idea")
    assert (digest(installed, ALONE, "idea", **{name: ALONE[name] + "# changed\n"}) != before) is is_seen
    forget()


def test_a_package_beside_a_plug_in_is_seen_if_it_is_imported(folder: Path) -> None:
    files = {**ALONE, **FILES, "mine/other.py": "from help import deep\n"}
    before = digest(folder, files)
    assert digest(folder, files, **{"bystander.py": "SIZE = 2\n"}) == before
    assert digest(folder, files, **{"help/deep.py": "SIZE = 2\n"}) != before


# Our own methods


@pytest.mark.parametrize("own", ["mine", "mine.methods"])
@pytest.mark.parametrize(
    ("name", "is_seen"),
    [
        *(("__init__", True), ("base", True), ("parts/__init__", True), ("parts/buffer", True)),
        *(("deep", True), ("named", True), ("nearby", True), ("other", False)),
    ],
)
def test_one_of_our_methods_is_made_of_what_its_file_reaches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, name: str, is_seen: bool
) -> None:
    monkeypatch.setattr(source, "OWN_METHODS", own)
    late = "import importlib\ndef late():\n    importlib.import_module('mine.named')\n"
    later = "from importlib import import_module\ndef late():\n    import_module('.nearby', __package__)\n"
    files = {
        "mine/__init__.py": "",
        **{
            file.replace("mine", own.replace(".", "/"), 1): text.replace("mine.", f"{own}.")
            for file, text in {**FILES, "mine/deep.py": late, "mine/named.py": later, "mine/nearby.py": ""}.items()
        },
    }
    changed = f"{own.replace('.', '/')}/{name}.py"
    before = digest(folder, files, f"{own}.idea")
    assert (digest(folder, files, f"{own}.idea", **{changed: files[changed] + "# changed\n"}) != before) is is_seen


def test_what_measures_is_no_part_of_a_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "OWN_METHODS", "mine.methods")
    monkeypatch.setattr(source, "MEASURING", "mine.harness")
    files = {
        "mine/__init__.py": "",
        "mine/methods/__init__.py": "",
        "mine/methods/idea.py": "import mine.harness.worker\nclass Idea(mine.harness.worker.Held): pass\n",
        "mine/harness/__init__.py": "",
        "mine/harness/worker.py": "class Held: pass\n",
    }
    before = digest(folder, files, "mine.methods.idea")
    assert digest(folder, files, "mine.methods.idea", **{"mine/harness/worker.py": "class Held: x = 1\n"}) == before


def test_our_methods_reach_none_of_each_other_but_their_bases() -> None:
    for name in ("er", "derpp", "ewc"):
        files = source._method_files(tuple(base.__module__ for base in method_class(name).__mro__))
        assert {"clmem/methods/__init__.py", "clmem/methods/base.py", f"clmem/methods/{name}.py"} == {
            file for file in files if not file.startswith("clmem/methods/parts/")
        }


def test_methods_that_share_no_code_have_other_digests() -> None:
    assert method_digest(method_class("er")) != method_digest(method_class("derpp"))


# Nothing is run


@pytest.mark.parametrize("end", ["raise RuntimeError('no GPU')", "raise SystemExit(3)", "RAN = True"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_module_that_is_only_imported_late_or_for_types_is_read_and_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: str, whole: bool
) -> None:
    if not whole:
        monkeypatch.setattr(source, "MOST_MODULES", 5)
    mark = folder / "ran"
    gpu = f"open({str(mark)!r}, 'w').close()\n{end}\n"
    files = {
        "mine/__init__.py": "",
        "mine/gpu/__init__.py": gpu,
        "mine/gpu/kernels.py": gpu,
        **{f"mine/filler{number}.py": "" for number in range(9)},
        "mine/idea.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mine.gpu.kernels import Kernel\n"
            "class Idea:\n    def late(self):\n        from mine.gpu import kernels\n        import mine.gpu.absent\n"
        ),
    }
    before = digest(folder, files)
    loaded = set(sys.modules)
    source.modules_digest.cache_clear()
    assert digest(folder, files, **{"mine/gpu/kernels.py": gpu + "# changed\n"}) != before
    assert not mark.exists()
    assert not {name for name in set(sys.modules) - loaded if name.startswith("mine.gpu")}


def test_a_modules_own_getattr_is_not_asked(folder: Path) -> None:
    lazy = "def __getattr__(name):\n    raise SystemExit(name)\n"
    assert digest(folder, **{"mine/__init__.py": lazy, "mine/idea.py": FILES["mine/idea.py"] + lazy})


# Large packages


def test_a_large_package_counts_as_what_the_class_reaches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOST_MODULES", len(FILES) - 1)
    before = digest(folder)
    for name in FILES:
        is_seen = digest(folder, **{name: FILES[name] + "# changed\n"}) != before
        assert is_seen is (name != "mine/other.py"), name


def test_a_package_with_many_data_files_is_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOST_FILES", 10)
    files = {**FILES, **{f"mine/a_data/{number}.png": "" for number in range(10)}}
    before = digest(folder, files)
    assert digest(folder, files, **{"mine/other.py": "# changed\n"}) == before
    assert digest(folder, files, **{"mine/deep.py": "# changed\n"}) != before


def test_imports_are_followed_to_the_nearest_files_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOST_MODULES", 3)
    chain = {f"mine/link{number}.py": f"def late():\n    import mine.link{number + 1}\n" for number in range(9)}
    files = {"mine/__init__.py": "", "mine/idea.py": "import mine.link0\nclass Idea: pass\n", **chain}
    before = digest(folder, files)
    seen = [name for name in chain if digest(folder, files, **{name: chain[name] + "# changed\n"}) != before]
    assert seen == ["mine/link0.py", "mine/link1.py", "mine/link2.py"]


# Files that are out of order


@pytest.mark.parametrize(
    "content",
    [
        *(b"def broken(:\n", b"# \xff\xfe\nimport os\n", b"\0", b"# -*- coding: no-such -*-\n", b"x = '\\d'\n"),
        *(b"(" * 5000, b"from ...... import above\nfrom ..... import *\nimport_module('../../x')\n__import__(1)\n"),
    ],
    ids=["syntax error", "not UTF-8", "null byte", "unknown encoding", "wrong escape", "too deep", "above the top"],
)
@pytest.mark.filterwarnings("error")
def test_a_file_that_is_no_python_is_seen_as_bytes(folder: Path, content: bytes) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/odd.py").write_bytes(content)
    before = digest(folder)
    (folder / "mine/odd.py").write_bytes(content + b"\n")
    assert digest(folder) != before


def test_a_file_that_cannot_be_read_hides_no_other(folder: Path) -> None:
    write(folder, FILES)
    (folder / "mine/absent.py").symlink_to(folder / "nowhere.py")
    before = digest(folder)
    assert digest(folder, **{"mine/other.py": "# changed\n"}) != before


def test_a_folder_that_may_not_be_read_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    write(folder, ALONE)
    importlib.import_module("idea")
    monkeypatch.setattr(Path, "is_file", refuse)
    assert source._method_files(("idea",)) == {}


def test_a_link_in_a_circle_ends(folder: Path) -> None:
    write(folder, FILES)
    (folder / "mine/parts/up").symlink_to(folder / "mine", target_is_directory=True)
    assert digest(folder)


@pytest.mark.parametrize(
    ("name", "is_seen"), [("base", True), ("parts/buffer", True), ("deep", True), ("other", False)]
)
def test_a_folder_without_init_counts_as_what_the_class_reaches(folder: Path, name: str, is_seen: bool) -> None:
    files = {file: text for file, text in FILES.items() if not file.endswith("__init__.py")}
    changed = f"mine/{name}.py"
    before = digest(folder, files)
    assert (digest(folder, files, **{changed: files[changed] + "# changed\n"}) != before) is is_seen


def test_a_package_in_a_namespace_does_not_count_its_neighbours(folder: Path) -> None:
    files = {f"mine/{name}": text.replace("mine.", "mine.mine.") for name, text in FILES.items()}
    files["mine/neighbour/__init__.py"] = ""
    before = digest(folder, files, "mine.mine.idea")
    assert digest(folder, files, "mine.mine.idea", **{"mine/neighbour/__init__.py": "# changed\n"}) == before
    assert digest(folder, files, "mine.mine.idea", **{"mine/mine/other.py": "# changed\n"}) != before


def test_a_plug_in_in_a_zip_archive_counts_as_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for number in range(2):
        archive = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name, text in {**FILES, "mine/deep.py": f"SIZE = {number}\n"}.items():
                file.writestr(zipfile.ZipInfo(name), text)
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(archive))
            forget()
            digests.append(method_digest(importlib.import_module("mine.idea").Idea))
    forget()
    assert digests[0] != digests[1]


def test_a_class_whose_files_are_gone_has_a_digest(folder: Path) -> None:
    write(folder, FILES)
    cls = importlib.import_module("mine.idea").Idea
    shutil.rmtree(folder / "mine")
    source.modules_digest.cache_clear()
    assert method_digest(cls) == method_digest(method_class("sgd"))


@pytest.mark.parametrize("module", ["__main__", "builtins", "no.such.module", "", None])
def test_a_class_without_a_file_has_a_digest_too(monkeypatch: pytest.MonkeyPatch, module: str | None) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    source.modules_digest.cache_clear()
    assert method_digest(type("Typed", (), {"__module__": module})) == source._digest({})


# What measures


@pytest.mark.parametrize("name", ["results/source.py", "data/budgets.toml", "memory/ledger/join.py"])
def test_a_change_in_what_measures_is_seen_in_code_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = Path(source.__file__).parents[1]
    shutil.copytree(root, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "__file__", str(tmp_path / "harness/results/source.py"))
    before = measuring_digest.__wrapped__()
    (tmp_path / "harness/__pycache__").mkdir()
    (tmp_path / "harness/__pycache__/source.pyc").write_text("cache")
    (tmp_path / "harness/.swap").write_text("hidden")
    assert measuring_digest.__wrapped__() == before
    with (tmp_path / "harness" / name).open("a") as file:
        file.write("# changed\n")
    assert measuring_digest.__wrapped__() != before
