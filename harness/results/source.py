"""Digests of source code, so that numbers of older code are never taken for those of today's.

Files are looked up by name and read. No code is imported or run, because a module may be optional, slow or broken.
"""

from __future__ import annotations

import ast
import hashlib
import os
import pkgutil
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import all_suffixes
from importlib.util import resolve_name
from itertools import takewhile
from pathlib import Path

OWN_METHODS = "clmem.methods"
"""The package of our own methods. Each stands for itself: a change of one does not make results of another stale."""

MEASURING = "clmem.harness"
"""The package that measures: `measuring_digest` covers it, and a method's digest leaves it out."""

MOST_MODULES = 200
"""A package of more modules is not read as a whole; at most as many are reached by imports, which takes seconds."""

MOST_FILES = 20_000
"""A package of more files of any kind, such as images, is not read as a whole either: listing them takes a second."""

DIGITS = 16


@cache
def own_methods() -> frozenset[str]:
    """Return the names of the methods that come with clmem, without importing one."""
    files = pkgutil.iter_modules(import_module(OWN_METHODS).__path__)
    return frozenset(file.name.replace("_", "-") for file in files if not file.ispkg and file.name != "base")


@cache
def measuring_digest() -> str:
    """Return a digest of what measures: of each file in this package, code or data, committed or not."""
    folder = Path(__file__).absolute().parents[1]
    return _digest({path.relative_to(folder).as_posix(): path for path in _files(folder)})


def method_digest(cls: type) -> str:
    """Return a digest of the source that a method's numbers depend on; it reads files and imports nothing.

    - The class and its bases in `OWN_METHODS`: their files, and what these import in that package.
    - The class and its bases in a plug-in: each module of the plug-in's package, imported or not.
    - A plug-in that is a single module or a folder without `__init__.py`, or that has more than `MOST_MODULES` modules:
      the files of the class and its bases, and what these import in the plug-in.
    - What all these import from `OWN_METHODS`, and from the folder that the plug-in lies in. If that folder is
      `site-packages`, only its single modules count, because the packages there are other people's.

    An import runs the `__init__.py` of each package on its way, so these belong to it. Imports are followed to at most
    `MOST_MODULES` more files, the nearest to the class first. Code in a zip archive counts as the whole archive.

    Not seen:

    - the standard library, torch, and installed packages that hold no base of the class;
    - a module outside of the plug-in's package if its name is put together at run time;
    - files of a plug-in that are no modules, such as its settings;
    - a class whose source is not in files, such as one typed into a shell.
    """
    return modules_digest(tuple(base.__module__ for base in cls.__mro__ if isinstance(base.__module__, str)))


@cache
def modules_digest(modules: tuple[str, ...]) -> str:
    """Return a digest of the source that loaded modules need, as of the modules of a method's class and its bases."""
    return _digest(_method_files(modules))


@dataclass(frozen=True)
class _Place:
    """A folder with modules.

    package: the parts of the name of the package whose modules lie there; without parts, top-level modules do.
    """

    package: tuple[str, ...]
    folder: Path

    def files(self, name: str) -> Iterator[tuple[str, Path]]:
        """Yield (key, path) of each file here that an import of `name` runs, also if `name` is a class in a module."""
        parts = tuple(takewhile(str.isidentifier, name.split(".")))
        above = len(self.package)
        if parts[:above] != self.package:
            return
        installed = not above and self.folder.name in ("site-packages", "dist-packages")
        for length in range(above, 2 if installed and parts else len(parts) + 1):
            key, stem = "/".join(parts[:length]), self.folder.joinpath(*parts[above:length])
            if length and not installed and _is_file(stem / "__init__.py"):
                yield f"{key}/__init__.py", stem / "__init__.py"
            if length > above and _is_file(stem.with_name(f"{stem.name}.py")):
                yield f"{key}.py", stem.with_name(f"{stem.name}.py")


def _method_files(modules: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a method by a key that does not depend on where they are installed."""
    modules = tuple(name for name in dict.fromkeys(modules) if _belongs(name))
    places = list(dict.fromkeys(place for name in (OWN_METHODS, *modules) for place in _places(name)))
    files: dict[str, Path] = {}
    for name in modules:
        files = {**_whole_package(name), **dict(_modules(name, places)), **files, **_module_of_class(name)}
    _follow(files, places)
    return files


def _belongs(module: str) -> bool:
    """Say whether a module can be part of a method: all but the standard library, torch and what measures."""
    top = module.partition(".")[0]
    if top in (OWN_METHODS.partition(".")[0], MEASURING.partition(".")[0]):
        return _is_own(module)
    return top != "torch" and top not in sys.stdlib_module_names


def _is_own(module: str) -> bool:
    return f"{module}.".startswith(f"{OWN_METHODS}.")


def _places(module: str) -> Iterator[_Place]:
    """Yield the folders where a loaded module's own package, and what lies next to that, may import from."""
    top = OWN_METHODS if _is_own(module) else module.partition(".")[0]
    folders, file = _folders(top), _loaded(top, "__file__")
    yield from (_Place(tuple(top.split(".")), folder) for folder in folders)
    if top != OWN_METHODS:
        beside = folders or ([Path(file)] if isinstance(file, str) else [])
        yield from (_Place((), path.absolute().parent) for path in beside)


def _whole_package(module: str) -> dict[str, Path]:
    """Return each file that is a module of the outermost regular package around a plug-in's module, unless too many."""
    parts = module.split(".")
    around = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    package = next((name for name in around if _folders(name) and _loaded(name, "__file__")), None)
    if package is None or _is_own(module):
        return {}
    files: dict[str, Path] = {}
    for folder in _folders(package):
        for number, path in enumerate(_files(folder)):
            if path.name.endswith(tuple(all_suffixes())):
                files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
            if len(files) > MOST_MODULES or number >= MOST_FILES:
                return {}
    return files


def _module_of_class(module: str) -> dict[str, Path]:
    """Return the file that a loaded module came from, which may be compiled or in an archive."""
    file = _loaded(module, "__file__")
    if not isinstance(file, str):
        return {}
    path = next((path for path in (Path(file), *Path(file).parents) if _is_file(path)), None)
    name = module.replace(".", "/") + ("/__init__" if _folders(module) else "")
    return {} if path is None else {name + Path(file).suffix: path}


def _follow(files: dict[str, Path], places: list[_Place]) -> None:
    """Add the files that files import, and those that these import, nearest first."""
    most = len(files) + MOST_MODULES
    waiting = deque(files)
    while waiting and len(files) < most:
        key = waiting.popleft()
        for name in _imports(key.rpartition("/")[0].replace("/", "."), files[key]):
            for other, path in _modules(name, places):
                if other not in files and len(files) < most:
                    files[other] = path
                    waiting.append(other)


def _modules(name: str, places: Iterable[_Place]) -> Iterator[tuple[str, Path]]:
    """Yield (key, path) of each file that an import of a name runs, as far as it can be part of a method."""
    if _belongs(name):
        fitting = (place for place in places if place.package or not _is_own(name))
        yield from (file for place in fitting for file in place.files(name))


def _imports(package: str, path: Path) -> Iterator[str]:
    """Yield the names of everything that a file imports, at its top or inside of functions; they may be no modules.

    package: the package that the file's relative imports start from. A file that cannot be read or parsed has none.
    """
    if path.suffix != ".py":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a plug-in's escapes is no concern of a measurement
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function, name = getattr(node.func, "attr", getattr(node.func, "id", "")), node.args[0].value
            if function in ("import_module", "__import__") and isinstance(name, str):
                yield _absolute(name, package)


def _absolute(name: str, package: str) -> str:
    """Return a relative name in full, or the empty name if it leads out of every package."""
    try:
        return resolve_name(name, package)
    except ImportError:
        return ""


def _loaded(module: str, attribute: str) -> object:
    """Return what a loaded module holds under a name; a module's own `__getattr__` is not asked, it may import."""
    return getattr(sys.modules.get(module), "__dict__", {}).get(attribute)


def _folders(package: str) -> list[Path]:
    """Return the folders of a loaded package: one, several of a namespace package, none of what is no package."""
    path = _loaded(package, "__path__")
    try:
        return [Path(folder) for folder in path] if isinstance(path, Iterable) else []
    except (KeyError, TypeError):  # a namespace package whose parent is not loaded any more, or no folders
        return []


def _files(folder: Path) -> Iterator[Path]:
    """Yield each file below a folder but caches and hidden ones; symbolic links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be read
        return False


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for key in sorted(files):
        digest.update(os.fsencode(key) + b"\0" + _file_digest(files[key]))
    return digest.hexdigest()[:DIGITS]


def _file_digest(path: Path) -> bytes:
    """Return the digest of a file's bytes; of a file that cannot be read, the digest of nothing."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return hashlib.sha256().digest()
    return digest.digest()
