"""What a campaign counts. All but kills, faults and inputs must be zero."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """kills: signals sent. faults: commands run on a machine that misbehaves. inputs: hostile files and options read.

    The others are sentences, one for each time: results that were lost, results that differ from undisturbed ones,
    commands that printed a traceback, commands that did not end, files outside of where they belong, code that ran.
    """

    kills: int = 0
    faults: int = 0
    inputs: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    FINDINGS = ("lost", "wrong", "tracebacks", "hangs", "outside", "executed", "orphans")

    @property
    def findings(self) -> list[str]:
        """Return every finding in one sentence."""
        return [f"{kind}: {text}" for kind in self.FINDINGS for text in getattr(self, kind)]

    def __str__(self) -> str:
        counts = [f"{name} {getattr(self, name)}" for name in ("kills", "faults", "inputs")]
        counts += [f"{kind} {len(getattr(self, kind))}" for kind in self.FINDINGS]
        return "\n".join([", ".join(counts), *self.findings])
