"""`clmem list`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from clmem.bench.options import SUITES, AsJson


def list_(
    what: Annotated[
        Literal["methods", "techniques", "streams", "networks", "targets", "cards", "budgets", "suites", "claims"],
        typer.Argument(help="What to list."),
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from."""
    from clmem.reports.terminal.lists import techniques_json, techniques_text, two_columns

    if what == "techniques":
        print(json.dumps(techniques_json(), indent=1) if as_json else techniques_text())
        return
    entries = _LISTS[what]()
    print(json.dumps(entries, indent=1) if as_json else two_columns(entries))


def _list_methods() -> dict[str, str]:
    from clmem.harness.learning.registry import method_entries

    return method_entries()


def _list_streams() -> dict[str, str]:
    from clmem.harness.streams import STREAMS

    return {**STREAMS, "synthetic-<side>px": "noise, 3 x side x side, 5 tasks of 2 classes: memory only, no accuracy"}


def _list_networks() -> dict[str, str]:
    from clmem.harness.learning.descriptions import networks

    return networks()


def _list_targets() -> dict[str, str]:
    from clmem.harness.specs.targets import TARGETS

    return TARGETS


def _list_cards() -> dict[str, str]:
    from clmem.harness.memory.predicting.cards import cards

    return {
        card.name: f"{card.device} with cuDNN {card.cudnn}: what it took for {len(card.workspaces)} shapes of "
        "convolutions"
        for card in cards()
    }


def _list_budgets() -> dict[str, str]:
    from clmem.harness.specs.budgets import boards
    from clmem.reports.data.units import mib

    entries = {}
    for name, board in boards().items():
        note = "; clmem does not run on this board, it only predicts" if board.note else ""
        entries[name] = f"{board.title}: {mib(board.tensors_bytes)} MiB that torch may reserve{note}"
    return entries


def _list_suites() -> dict[str, str]:
    from clmem.harness.files import read_toml

    return {file.stem: str(read_toml(file)["title"]) for file in sorted(SUITES.glob("*.toml"))}


def _list_claims() -> dict[str, str]:
    from clmem.reports.claims.claim import claim_names, load_claim

    return {name: load_claim(name).title for name in claim_names()}


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _list_methods,
    "streams": _list_streams,
    "networks": _list_networks,
    "targets": _list_targets,
    "cards": _list_cards,
    "budgets": _list_budgets,
    "suites": _list_suites,
    "claims": _list_claims,
}
