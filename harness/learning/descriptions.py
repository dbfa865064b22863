"""What our methods and networks say of themselves, read from their files: importing them imports torch, in seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from clmem.harness.results.source import OWN_METHODS


@dataclass(frozen=True)
class Description:
    """headline: the first line of the class's docstring, empty without one. presets: named settings, also inherited."""

    headline: str
    presets: Mapping[str, Mapping[str, object]]


def own_description(name: str) -> Description | None:
    """Return what the file of one of our methods says of it; None where only importing it tells."""
    module = f"{OWN_METHODS}.{name.replace('-', '_')}"
    try:
        for node in _tree(module).body:
            if isinstance(node, ast.ClassDef) and _assigned(node, "name") == name:
                headline = (ast.get_docstring(node) or "").partition("\n")[0]
                presets = next(_inherited(module, node, "presets"), {})
                return Description(headline, presets) if isinstance(presets, dict) else None
    except (OSError, SyntaxError, ValueError):  # a value that is no literal is computed by the import
        return None
    return None


def own_networks() -> dict[str, str]:
    """Return one line about every network, by name."""
    path = Path(__file__).parents[1] / "networks" / "resnet18.py"
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NETWORKS":
                found: dict[str, str] = ast.literal_eval(node.value)
                return found
    from clmem.harness.networks.resnet18 import NETWORKS

    return NETWORKS


def _inherited(module: str, node: ast.ClassDef, attribute: str) -> Iterator[object]:
    """Yield the values of a class's attribute, the class's own first, then those of its bases in our files."""
    own = _assigned(node, attribute)
    if own is not None:
        yield own
    for base in node.bases:
        if isinstance(base, ast.Name):
            for place, other in _defined(module, base.id):
                yield from _inherited(place, other, attribute)


def _defined(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the class that a name stands for in a module, with the module that defines it."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield module, node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{OWN_METHODS}."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    yield from _defined(str(node.module), alias.name)


def _assigned(node: ast.ClassDef, attribute: str) -> object:
    """Return the literal that a class body assigns to a name, None if it assigns none. Raises ValueError if no literal
    is assigned.
    """
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            value = getattr(statement, "value", None)
            return None if value is None else ast.literal_eval(value)
    return None


@cache
def _tree(module: str) -> ast.Module:
    package = import_module(OWN_METHODS)
    inner = module.removeprefix(f"{OWN_METHODS}.").replace(".", "/")
    return ast.parse(Path(package.__path__[0], f"{inner}.py").read_bytes())
