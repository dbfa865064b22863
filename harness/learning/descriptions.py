"""What our methods and networks say of themselves, read from their files: importing them imports torch, in seconds."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from clmem.harness.errors import UsageError
from clmem.harness.files import read_toml
from clmem.harness.networks.registry import NETWORKS, OWN, network_descriptions
from clmem.harness.results.source import OWN_METHODS


@dataclass(frozen=True)
class Description:
    """headline: the first line of the class's docstring, empty without one. presets: named settings, also inherited."""

    headline: str
    presets: Mapping[str, Mapping[str, object]]


def own_description(name: str) -> Description | None:
    """Return what the files of one of our methods say of it; None where only importing it tells.

    That is a method without a data file, whose presets may be inherited.
    """
    try:
        for node in ast.parse(_file(f"{name.replace('-', '_')}.py").read_bytes()).body:
            if isinstance(node, ast.ClassDef) and _assigned(node, "name") == name:
                headline = (ast.get_docstring(node) or "").partition("\n")[0]
                return Description(headline, read_toml(_file(f"{name}.toml")).get("presets", {}))
    except (OSError, SyntaxError, ValueError, UsageError):
        return None
    return None


def networks() -> dict[str, str]:
    """Return one line about every network, by name. Ours are read and not imported; those of others are imported."""
    if set(NETWORKS.names()) == set(OWN):
        with suppress(OSError, SyntaxError, ValueError):
            return dict(_own_network(name, *target.split(":")) for name, target in OWN.items())
    return network_descriptions()


def _own_network(name: str, module: str, attribute: str) -> tuple[str, str]:
    """Return what a list shows of a network that comes with clmem: its name and the description in its file."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")[2:]).with_suffix(".py")
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != attribute:
            continue
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            shown = f"{name}:<model>" if node.value.func.id == "Family" else name
            return shown, str(ast.literal_eval(node.value.args[0]))
    raise ValueError(f"{path} does not describe {attribute}")


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


def _file(name: str) -> Path:
    return Path(import_module(OWN_METHODS).__path__[0], name)
