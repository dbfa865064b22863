"""Which role a block has when looks claim it for several.

This order decides bytes; `ROLES` is only the order in which roles are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

KEPT_ROLES = ("parameters", "module_buffers", "optimizer", "method_state", "replay")
"""Roles that may live from one phase into the next; anything else that does is undeclared state. They win over passing
roles, because these bytes stay when the gradient or the batch that also holds them is gone."""

PASSING_ROLES = ("gradients", "input")
"""Roles that looks see for a while. They win over what autograd saves, which says only who else needs a tensor."""


def rank(role: str) -> int:
    """Return a role's place among claims of one look; the lowest wins. Raises ValueError for what none can claim."""
    return (*KEPT_ROLES, *PASSING_ROLES).index(role)


def winner(roles: Iterable[str]) -> str:
    """Return which of several claims wins."""
    return min(roles, key=rank)


@dataclass(frozen=True, slots=True)
class Claim:
    """A look at this mark, in this state, saw a block in this role."""

    mark: int
    state: int
    role: str


def roles_in_time(claims: Iterable[Claim]) -> list[tuple[int, str]]:
    """Return the roles of one block and the state from which it has each; it has the first from birth.

    A gradient or input that is declared later is kept from the look that first sees it declared. Looks see all that is
    declared at once, so a later look that claims another kept role alone changes it; nothing else does.
    """
    kept: dict[int, Claim] = {}  # by mark: the kept role that wins that look
    passing: list[Claim] = []
    for claim in claims:
        if claim.role not in KEPT_ROLES:
            passing.append(claim)
        elif claim.mark not in kept or rank(claim.role) < rank(kept[claim.mark].role):
            kept[claim.mark] = claim
    declared = [kept[mark] for mark in sorted(kept)]
    before = [claim.role for claim in passing if not declared or claim.mark < declared[0].mark]
    changes = [(claim.state, claim.role) for claim in declared]
    if before:
        return [(0, winner(before)), *_changes(changes)]
    return [(0, changes[0][1]), *_changes(changes)[1:]]


def _changes(roles: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [*roles[:1], *(new for old, new in pairwise(roles) if new[1] != old[1])]
