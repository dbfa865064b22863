"""How a step is carried out: `step` does it, plainly or by lean techniques, whose code lies in `harness/techniques/`.

What is computed stays as it is, or a technique is refused (`refusals`) or marked as inexact. `monitor` and `watch` are
how others look on.
"""
