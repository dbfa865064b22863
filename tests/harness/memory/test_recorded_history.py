"""A training step that somebody recorded on a GPU: joined by the ledger, and predicted without one.

`recorded/resnet18_step.json` says where it comes from. cuDNN's workspaces are predicted by rules that were fitted to
this history; all else that is predicted here was not.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.memory import predicted
from harness.memory.caching import cached
from harness.memory.cublas import CUBLAS
from harness.memory.cuda import with_requests
from harness.memory.ledger import PhaseSpan, Records, join
from harness.memory.log import AllocationLog, Event
from harness.memory.predicted import ShapeRecorder

RECORDED = json.loads((Path(__file__).parent / "recorded" / "resnet18_step.json").read_text())
SIZES: list[int] = RECORDED["sizes"]
ACTIONS: list[int] = RECORDED["actions"]
MIB = 2**20
KEPT_BY_CUBLAS = 4 * MIB
"""What that torch kept for each thread that multiplies; ours is pinned to another size."""
CUBLAS_LT = MIB
"""What it took for the product with a bias, and gave back: ours shares cuBLAS's."""


def recorded_log() -> AllocationLog:
    """Return the history as a log of requests, the matrix products named."""
    events: list[Event] = []
    total, live = 0, set[int]()
    for number, block in enumerate(ACTIONS):
        size = -SIZES[block] if block in live else SIZES[block]
        live ^= {block}
        total += size
        op = "aten::addmm" if size == KEPT_BY_CUBLAS else "aten::empty" if size > 0 else ""
        events.append(Event(number, block, size, total, op))
    return AllocationLog(events, {0: 0, 1: len(events)})


@pytest.fixture(scope="module")
def predicted_log() -> AllocationLog:
    """The same step on shapes alone."""
    from torchvision.models import resnet18

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted, "cublas_workspace_bytes", lambda: KEPT_BY_CUBLAS)
        recorder = ShapeRecorder("cuda")
        recorder.start()
        with torch.device("meta"):
            model = resnet18()
            images, labels = torch.rand(8, 3, 224, 224), torch.zeros(8, dtype=torch.long)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, foreach=False)
        loss = torch.nn.CrossEntropyLoss()(model(images), labels)
        loss.backward()
        optimizer.step()
        return recorder.stop()


def peak_bytes(log: AllocationLog) -> int:
    return max(event.total_bytes for event in log.events)


def test_the_ledger_joins_a_recorded_history_to_the_byte() -> None:
    given, reserved_bytes = cached(recorded_log())
    trace: list[dict[str, Any]] = [{"action": "segment_alloc", "addr": 0, "size": 2 * MIB, "stream": 0, "frames": []}]
    for event in given.events:
        entry = {"addr": event.address, "size": event.requested_bytes, "stream": 0, "frames": []}
        actions = ("alloc",) if event.size_bytes > 0 else ("free_requested", "free_completed")
        trace += [{"action": action, **entry} for action in actions]
    log = with_requests(given, trace, KEPT_BY_CUBLAS)
    ledger = join(log, Records(phases=[PhaseSpan(0, "step", 0, 1)], end=1))
    footprint = ledger.footprint
    assert sum(footprint.at_peak.values()) == footprint.peak_bytes == peak_bytes(log)
    assert footprint.peak_bytes - footprint.at_peak["rounding"] <= peak_bytes(recorded_log())
    assert footprint.workspace_at_peak[CUBLAS] == 2 * KEPT_BY_CUBLAS, "one for forward, one for the backward's thread"
    assert reserved_bytes >= footprint.peak_bytes


def test_its_peak_is_predicted_to_a_thousandth(predicted_log: AllocationLog) -> None:
    assert peak_bytes(recorded_log()) == 303_624_744
    assert peak_bytes(predicted_log) == pytest.approx(303_624_744, rel=1e-3)
    assert peak_bytes(cached(predicted_log)[0]) == pytest.approx(peak_bytes(cached(recorded_log())[0]), rel=1e-3)


def test_every_tensor_of_it_is_predicted_and_none_that_was_not_there(predicted_log: AllocationLog) -> None:
    """Scratch has negative addresses in a prediction: what has not is a tensor's."""
    tensors = Counter(event.size_bytes for event in predicted_log.events if event.size_bytes > 0 < event.address)
    assert not tensors - Counter(SIZES)
    rest = Counter(SIZES) - tensors
    sums = Counter({802_816: 1, 1_605_632: 2, 3_211_264: 2, 6_422_528: 3})
    """Gradients that meet where a block begins: that torch added them out of place, later ones do it in place."""
    assert rest == sums + Counter({KEPT_BY_CUBLAS: 2, CUBLAS_LT: 1}) + Counter(workspaces())


def test_cudnn_takes_what_its_rules_say_within_a_fiftieth(predicted_log: AllocationLog) -> None:
    """Of what takes a MiB or more; tables of some KiB are left out, and the gradient of the input stands beside it."""
    scratch = [event.size_bytes for event in predicted_log.events if event.address < 0 < event.size_bytes]
    inputs = (802_816, 1_605_632, 3_211_264, 6_422_528)
    rules = sorted(size for size in scratch if size >= MIB and size not in (*inputs, KEPT_BY_CUBLAS))
    assert rules == pytest.approx(sorted(size for size in workspaces() if size >= MIB), rel=0.02)


def workspaces() -> list[int]:
    """Return the sizes of what came and went with nothing between."""
    return [SIZES[block] for block, later in pairwise(ACTIONS) if block == later]
