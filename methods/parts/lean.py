"""The lean executions of methods that learn alike (`harness/techniques.py`), found by measuring; all are exact."""

from __future__ import annotations

from collections.abc import Mapping

WHOLE: Mapping[str, object] = {
    "checkpoint": "convolution",
    "conv_slice": 4,
    "inplace_relu": True,
    "optimizer_in_backward": True,
    "trunk_chunk": 4,
}
"""For one term that learns the whole network."""

TERMWISE: Mapping[str, object] = {**WHOLE, "backward": "termwise"}
"""For several terms that learn the whole network: all of their activations at once are more than one more gradient."""

TAIL: Mapping[str, object] = {**WHOLE, "trunk_chunk": 1}
"""For one term that learns the tail behind a frozen trunk."""

GROUPED_TAIL: Mapping[str, object] = {**TAIL, "grouped_bn": True}
"""For several terms that learn a tail: its gradients are more than their activations, so they share one backward."""
