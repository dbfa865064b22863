"""`clmem show`: what there is to know of one method."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

from clmem.bench.options import METHOD, AsJson


def show(method: Annotated[str, METHOD], as_json: AsJson = False) -> None:
    """Show one method: its paper, settings, presets, lean execution, and how it differs from the paper."""
    from clmem.harness.learning.registry import check_method

    check_method(method)
    from clmem.harness.learning.cards import method_card
    from clmem.reports.terminal.lists import method_text

    card = method_card(method)
    print(json.dumps(asdict(card), indent=1, default=str) if as_json else method_text(card))
