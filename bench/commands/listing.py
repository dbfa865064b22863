"""`clmem list`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from clmem.bench.options import SUITES, AsJson
from clmem.harness.errors import UsageError
from clmem.harness.specs.budgets import boards
from clmem.harness.specs.suite import load_suite
from clmem.harness.specs.targets import TARGETS
from clmem.harness.text import clean
from clmem.reports.data.units import mib

LONGEST = 200
"""Characters of a description."""


def list_(
    what: Annotated[
        Literal["methods", "streams", "networks", "targets", "budgets", "suites", "claims"],
        typer.Argument(help="What to list."),
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from."""
    entries = _LISTS[what]()
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    column = max(map(len, entries)) + 2
    for name, description in entries.items():
        print(f"{name:{column}}{description}".rstrip())


def _list_methods() -> dict[str, str]:
    from clmem.harness.learning.registry import method_class, method_names

    entries: dict[str, str] = {}
    for name in method_names():
        try:
            cls = method_class(name)
        except UsageError as error:  # somebody's plug-in; the others can be used all the same
            entries[clean(name, 80)] = f"cannot be used: {error}"
            continue
        entries[name] = _headline(cls)
        for preset, values in cls.presets.items():
            entries[f"{name}@{preset}"] = f"{name} with its own {', '.join(map(str, values))}"
    return entries


def _headline(cls: type) -> str:
    """Return the first line of a class's description, which it may lack, as everything does under `python -OO`."""
    first = clean(str(cls.__dict__.get("__doc__") or "").strip().partition("\n")[0], LONGEST)
    return first or "(not described)"


def _list_streams() -> dict[str, str]:
    from clmem.harness.streams import STREAMS

    return {**STREAMS, "synthetic-<side>px": "noise, 3 x side x side, 5 tasks of 2 classes: memory only, no accuracy"}


def _list_budgets() -> dict[str, str]:
    entries = {}
    for name, board in boards().items():
        note = ", by prediction alone" if board.note else ""
        entries[name] = f"{board.title}: {mib(board.tensors_bytes)} MiB for tensors{note}"
    return entries


def _list_claims() -> dict[str, str]:
    from clmem.reports.claims.claim import claim_names, load_claim

    return {name: load_claim(name).title for name in claim_names()}


def _list_networks() -> dict[str, str]:
    from clmem.harness.networks.registry import network_descriptions

    return network_descriptions()


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _list_methods,
    "streams": _list_streams,
    "networks": _list_networks,
    "targets": lambda: TARGETS,
    "budgets": _list_budgets,
    "claims": _list_claims,
    "suites": lambda: {file.stem: load_suite(file).title for file in sorted(SUITES.glob("*.toml"))},
}
