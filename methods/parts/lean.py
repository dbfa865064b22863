"""The lean executions of methods that learn alike, found by measuring. All are exact.

`harness/specs/techniques.py` says what each technique does.
"""

from __future__ import annotations

from collections.abc import Mapping

WHOLE: Mapping[str, object] = {
    "bn_parts": 16,
    "checkpoint": "convolution",
    "conv_slice": 4,
    "inplace_relu": True,
    "inplace_sum": True,
    "optimizer_in_backward": True,
    "relu_masks": True,
    "trunk_chunk": 4,
}
"""For one term, whether it learns the whole network or a tail: shorter slices of a trunk would not lower the peak.

`checkpoint=deep` would take SGD on the CIFAR shape from 102.0 to 94.3 MiB, and its step to twice the plain one's time.
"""

TERMWISE: Mapping[str, object] = {**WHOLE, "backward": "termwise"}
"""For several terms that learn the whole network: all of their activations at once are more than one more gradient."""

GROUPED_TAIL: Mapping[str, object] = {**WHOLE, "grouped_bn": True}
"""For several terms that learn a tail: its gradients are more than their activations, so they share one backward."""
