"""Digests of source code, so that numbers of older code are never taken for those of today's."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

DIGITS = 16


@cache
def measuring_digest() -> str:
    """Return a digest of the code that measures: of everything in this package, committed or not."""
    root = Path(__file__).resolve().parent
    return _digest({path.relative_to(root).as_posix(): path for path in root.rglob("*.py")})


def method_digest(cls: type) -> str:
    """Return a digest of the source of a method's class and its bases, and of what they import from their own packages.

    A class whose source is not in files, as one typed into a shell, has the digest of nothing.
    """
    return _method_digest(tuple(base.__module__ for base in cls.__mro__))


@cache
def _method_digest(modules: tuple[str, ...]) -> str:
    packages = {name.partition(".")[0] for name in modules} - {"builtins", "abc", "typing", "torch"}
    found: dict[str, Path] = {}
    waiting = [name for name in modules if name.partition(".")[0] in packages]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [other for other in _imports(name, path) if other.partition(".")[0] in packages]
    return _digest(found)


def _file(module: str) -> Path | None:
    """Return the file of a module's source, None where there is no such module or no such file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, AttributeError, ValueError):  # it is a class in a module, or half imported
            return None
        file = None if spec is None else spec.origin
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _imports(module: str, path: Path) -> Iterable[str]:
    """Yield the names that may be modules of everything a file imports, at its top or inside of functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]
