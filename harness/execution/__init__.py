"""How a step is carried out: `step` takes it, plainly or lean, on the network that `prepared` holds.

The techniques lie in `harness/techniques/`. `monitor` and `watch` are how others look on.
"""
