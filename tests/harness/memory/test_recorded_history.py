"""A training step that somebody recorded on a GPU: joined by the ledger, and predicted without one.

`recorded/resnet18_step.json` says where it comes from. cuDNN's workspaces are predicted by rules that were fitted to
this history; all else that is predicted here was not. That it has no addresses is made up for by serving its requests
as the caching allocator would.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.join import Observation, PhaseSpan, Records, join
from clmem.harness.memory.ledger.libraries import CUBLAS, CUDNN
from clmem.harness.memory.ledger.log import AllocationLog, Event, without
from clmem.harness.memory.predicting import predicted
from clmem.harness.memory.predicting.caching import cached
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.memory.watching.device_log import merge
from tests.harness.memory.emulated import profiled, trace_of

RECORDED = json.loads((Path(__file__).parent / "recorded" / "resnet18_step.json").read_text())
SIZES: list[int] = RECORDED["sizes"]
ACTIONS: list[int] = RECORDED["actions"]
MIB = 2**20
PEAK_BYTES = 303_624_744
KEPT_BY_CUBLAS = 4 * MIB
"""What that torch kept for each thread that multiplies; ours is pinned to another size."""
CUBLAS_LT = MIB
"""What it took for the product with a bias, and gave back: ours shares cuBLAS's."""
PARAMETERS = 11_689_512
BUFFER_BYTES = 4 * 9_600 + 8 * 20
"""Running statistics, and how many batches each of the twenty batch norms has seen."""


def recorded_log() -> AllocationLog:
    """Return the history as a log of requests, the matrix products named; a mark before the step and one behind it."""
    events: list[Event] = []
    total, live = 0, set[int]()
    for number, block in enumerate(ACTIONS):
        size = -SIZES[block] if block in live else SIZES[block]
        live ^= {block}
        total += size
        op = "aten::addmm" if size == KEPT_BY_CUBLAS else "aten::empty" if size > 0 else ""
        events.append(Event(number, block, size, total, op))
    return AllocationLog(events, {0: 122, 1: len(events)})


def roles() -> dict[int, str]:
    """Return what each block is that the step leaves behind, from the order in which the script makes them."""
    found: dict[int, str] = {}
    for block in range(122):  # a convolution's weight; a batch norm's weight and bias, two statistics, a count
        found[block] = "module_buffers" if block < 120 and block % 6 > 2 else "parameters"
    found |= dict.fromkeys((122, 123), "input") | dict.fromkeys(range(396, 458), "optimizer")
    freed = {block for block, times in Counter(ACTIONS).items() if times == 2}
    backward = set(range(236, 396)) - freed
    return found | {block: "gradients" for block in backward if SIZES[block] != KEPT_BY_CUBLAS}


@pytest.fixture(scope="module")
def predicted_log() -> AllocationLog:
    """The same step on shapes alone, with cuBLAS's workspace of that torch."""
    from torchvision.models import resnet18

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted, "cublas_workspace_bytes", lambda: KEPT_BY_CUBLAS)
        recorder = ShapeRecorder("cuda")
        recorder.start()
        with torch.device("meta"):
            model = resnet18()
            images, labels = torch.rand(8, 3, 224, 224), torch.zeros(8, dtype=torch.long)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, foreach=False)
        outputs = model(images)
        loss = torch.nn.CrossEntropyLoss()(outputs, labels)
        loss.backward()
        optimizer.step()
        return recorder.stop()


def peak_bytes(log: AllocationLog) -> int:
    return max(event.total_bytes for event in log.events)


def joined(observed: dict[int, str]) -> tuple[AllocationLog, Records]:
    """Return the history as the profiler and the allocator would have told it, and records of these roles."""
    given, _ = cached(recorded_log())
    log = merge(profiled(given), trace_of(given), {}, KEPT_BY_CUBLAS)
    at = {block: event.address for block, event in zip(ACTIONS, log.events, strict=True) if event.size_bytes > 0}
    seen = [Observation(1, at[block], SIZES[block], role) for block, role in observed.items()]
    return log, Records(phases=[PhaseSpan(0, "step", 0, 1)], observations=seen)


def test_a_recorded_history_is_joined_with_roles_to_the_byte() -> None:
    log, records = joined(roles())
    records.declared.append((1, {"parameters": 4 * PARAMETERS, "module_buffers": BUFFER_BYTES}))
    footprint = join(log, records).footprint
    assert sum(footprint.at_peak.values()) == footprint.peak_bytes == peak_bytes(log)
    assert footprint.role_peaks["parameters"] == footprint.role_peaks["gradients"] == 4 * PARAMETERS
    assert footprint.role_peaks["optimizer"] == 4 * PARAMETERS
    assert footprint.role_peaks["module_buffers"] == BUFFER_BYTES
    assert footprint.at_peak["input"] == 4 * 8 * 3 * 224 * 224 + 8 * 8
    assert footprint.at_peak["optimizer"] == 0, "momentum comes with the first step, after the peak"
    assert footprint.workspace_at_peak[CUBLAS] == 2 * KEPT_BY_CUBLAS, "one for forward, one for the backward's thread"


def test_a_role_for_a_block_that_was_gone_is_refused() -> None:
    log, records = joined({**roles(), 125: "parameters"})
    with pytest.raises(LedgerError):
        join(log, records)


def test_its_peak_is_predicted_to_the_byte(predicted_log: AllocationLog) -> None:
    assert peak_bytes(predicted_log) == peak_bytes(recorded_log()) == PEAK_BYTES
    assert peak_bytes(without(predicted_log, CUDNN)) == 265_073_192
    assert peak_bytes(cached(predicted_log)[0]) == pytest.approx(peak_bytes(cached(recorded_log())[0]), rel=1e-3)


def test_every_tensor_of_it_is_predicted_and_none_that_was_not_there(predicted_log: AllocationLog) -> None:
    """Scratch has negative addresses in a prediction: what has not is a tensor's."""
    tensors = Counter(event.size_bytes for event in predicted_log.events if event.size_bytes > 0 < event.address)
    assert not tensors - Counter(SIZES)
    rest = Counter(SIZES) - tensors
    # gradients that meet where a block begins: that torch added them out of place, later ones do it in place
    sums = Counter({802_816: 1, 1_605_632: 2, 3_211_264: 2, 6_422_528: 3})
    assert rest == sums + Counter({KEPT_BY_CUBLAS: 2, CUBLAS_LT: 1}) + Counter(workspaces())


def test_cudnn_takes_what_its_rules_say(predicted_log: AllocationLog) -> None:
    """Within a fiftieth from a MiB on, within 75 KiB below, but for three that do without."""
    rules = sorted(event.size_bytes for event in predicted_log.events if event.op == CUDNN and event.size_bytes > 0)
    found = sorted(workspaces())
    for without_one in (32_768, 37_632, 131_072):
        rules.remove(without_one)
    assert [size for size in rules if size >= MIB] == pytest.approx([size for size in found if size >= MIB], rel=0.02)
    assert rules == pytest.approx(found, rel=0.02, abs=76_500)


def workspaces() -> list[int]:
    """Return the sizes of what came and went with nothing between."""
    return [SIZES[block] for block, later in pairwise(ACTIONS) if block == later]
