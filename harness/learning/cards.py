"""What there is to know of one method: read from its class, and from the docstring of its module."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clmem.harness.learning.registry import method_class
from clmem.harness.specs.fields import allowed
from clmem.harness.specs.run import RunSpec
from clmem.harness.text import clean

DIFFERS = re.compile(r"Differs from [^\n]*")
YEAR = re.compile(r"\b(?:19|20)\d\d\b")
LONGEST = 2000
"""Characters of one paragraph."""


@dataclass(frozen=True)
class Hyperparameter:
    """One hyper-parameter. default: what it is without `--set`, with the preset's value if a preset is named."""

    default: Any
    meaning: str
    allowed: str


@dataclass(frozen=True)
class MethodCard:
    """What `clmem show` shows. Texts are plain lines; those that a method lacks are empty.

    paper: where it was published. tuned: settings that differ on a stream. lean: the techniques of `--execution lean`.
    boundaries: where a network can be split, by network. differs: from the paper or the released code. uses_buffer:
    whether it has a replay buffer.
    """

    name: str
    summary: str
    paper: str
    settings: Mapping[str, Hyperparameter]
    presets: Mapping[str, Mapping[str, Any]]
    tuned: Mapping[str, Mapping[str, Any]]
    lean: Mapping[str, Any]
    boundaries: Mapping[str, list[str]]
    differs: list[str]
    uses_buffer: bool = False


def method_card(name: str) -> MethodCard:
    """Return what there is to know of a method, or of a preset of it. Raises UsageError for a name that is none."""
    cls = method_class(name)
    preset = cls.presets.get(name.partition("@")[2], {})
    paragraphs = _paragraphs(sys.modules[cls.__module__].__doc__ or "")
    settings = {
        key: Hyperparameter(
            default=preset.get(key, None if field.is_required() else field.get_default(call_default_factory=True)),
            meaning=clean(field.description or "", LONGEST),
            allowed=allowed(field),
        )
        for key, field in cls.Config.model_fields.items()
    }
    return MethodCard(
        name=name,
        summary=clean((cls.__dict__.get("__doc__") or "").strip().partition("\n")[0]),
        paper=next((clean(text, LONGEST) for text in paragraphs[1:3] if YEAR.search(text)), ""),
        settings=settings,
        presets=cls.presets,
        tuned=cls.tuned,
        lean=cls.lean,
        boundaries=_boundaries(),
        differs=_differs(paragraphs),
        uses_buffer=cls.uses_buffer,
    )


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring without formulas, which are indented."""
    whole = re.split(r"\n\s*\n", text.strip())
    return [paragraph for paragraph in whole if not paragraph.startswith(" ")]


def _differs(paragraphs: list[str]) -> list[str]:
    for paragraph in paragraphs:
        if DIFFERS.match(paragraph):
            head, *points = re.split(r"\n- ", paragraph)
            return [clean(point, LONGEST) for point in points or [head.partition(": ")[2]]]
    return []


def _boundaries() -> dict[str, list[str]]:
    import torch

    from clmem.harness.networks.registry import build_network

    name = RunSpec.model_fields["network"].default
    with torch.device("meta"):
        network = build_network(name, num_classes=2, width=1, seed=0)
    return {name: network.boundaries[1:]}
