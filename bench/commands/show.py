"""`clmem show`: what there is to know of one method, or a suite's file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from clmem.bench.options import SUITES, AsJson, complete_method_or_suite, suite_names


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="Method or suite; see `clmem list methods` and `clmem list suites`.",
            autocompletion=complete_method_or_suite,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show one method (paper, settings, presets, lean execution, differences from the paper), or a suite's file."""
    from clmem.harness.learning.registry import check_method, method_names

    if name in suite_names() and name not in method_names():
        _show_suite(name, as_json)
        return
    check_method(name)
    from clmem.harness.learning.cards import method_card
    from clmem.reports.terminal.lists import method_text

    card = method_card(name)
    print(json.dumps(asdict(card), indent=1, default=str) if as_json else method_text(card))


def _show_suite(name: str, as_json: bool) -> None:
    from clmem.harness.files import read_text, read_toml

    file = SUITES / f"{name}.toml"
    print(json.dumps(read_toml(file), indent=1) if as_json else read_text(file, "the suite").rstrip("\n"))
