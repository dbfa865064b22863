"""Every technique by the name of its field: one typed object says which are in use. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from clmem.harness.techniques.inexact import Inexact
from clmem.harness.techniques.layers import Layers
from clmem.harness.techniques.steps import Steps
from clmem.harness.techniques.storage import Storage
from clmem.harness.techniques.technique import Technique

if TYPE_CHECKING:
    from clmem.methods.base import Method, Network


class Techniques(Storage, Inexact, Layers, Steps):  # pydantic takes the fields of the last base first
    """Which lean techniques are in use; the default is plain execution.

    Each leaves what is computed as it is (to rounding), or is refused for a method where it would not. Results mark the
    exceptions, those that are not exact.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self) -> dict[str, Any]:
        """Return what differs from plain execution, by name."""
        return self.model_dump(exclude_defaults=True)

    @property
    def moves(self) -> list[str]:
        """Techniques in use that move memory between a device and the host."""
        return [name for name in self.changed() if TECHNIQUES[name].moves]

    @property
    def is_exact(self) -> bool:
        """Tell whether nothing in use computes something else than plain execution does."""
        return all(TECHNIQUES[name].exact for name in self.changed())

    @property
    def in_slices(self) -> bool:
        """Tell whether something in use runs images a few at a time."""
        return any(TECHNIQUES[name].in_slices for name in self.changed())

    @property
    def unpredictable(self) -> str:
        """Why bytes cannot be predicted with what is in use; empty if they can."""
        return next(filter(None, (TECHNIQUES[name].unpredictable for name in self.changed())), "")

    def refuse(self, method: Method) -> None:
        """Raise ValueError, saying why, if something in use would change what a method computes, or cannot be used."""
        used = self.changed()
        reasons = [TECHNIQUES[name].refuses(self, method) for name in used]
        reasons += [f"{name} cannot be used with it: {method.refuses[name]}" for name in used if name in method.refuses]
        for reason in filter(None, reasons):
            raise ValueError(reason)

    def prepare(self, network: Network) -> None:
        """Change a network, before it learns, as what is in use needs it."""
        for name, value in self.changed().items():
            TECHNIQUES[name].prepare(network, value)


TECHNIQUES: dict[str, Technique] = {
    name: next(part for part in field.metadata if isinstance(part, Technique))
    for name, field in Techniques.model_fields.items()
}
"""By the name of its field, in the order that results have them in."""
