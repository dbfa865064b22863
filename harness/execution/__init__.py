"""How a step is carried out: `step` does it, plainly or by the techniques of `harness/techniques/`.

`monitor` and `watch` are how others look on.
"""
