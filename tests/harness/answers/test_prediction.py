"""What is predicted without running anything is what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from clmem.harness.answers.prediction import predict, predicted_peak_bytes, predicted_peaks, why_incomparable
from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.memory.ledger.libraries import CUDNN
from clmem.harness.memory.predicting.caching import OutOfReservedError
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.memory.watching.recorder import LogRecorder
from clmem.harness.output import printing_to_stderr
from clmem.harness.results.environment import vectors
from clmem.harness.results.record import RunResult
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch, Outputs
from clmem.methods.sgd import SGD
from clmem.reports.terminal.runs import measure_json, measure_table, prediction_json, prediction_table

FEW_BYTES = 64
"""Numbers that torch wraps into tensors of a few bytes are not seen where nothing runs."""


def spec(method: str, execution: str = "plain", **changes: Any) -> RunSpec:
    config = {"trunk": "frozen"} if method.startswith("lightcl") else {"fisher_samples": 4} if method == "ewc" else {}
    values: dict[str, Any] = {"stream": "synthetic-cifar10", "width": 16, "buffer_size": 15, "replay_size": 15}
    return RunSpec(**{**values, "method": method, "execution": execution, "config": config, **changes})


def measured(*specs: RunSpec) -> list[RunResult]:
    found: list[RunResult] = []
    run_specs(list(specs), found.append)
    return found


def test_predicted_and_measured_footprints_agree_role_by_role_in_every_phase() -> None:
    (run,) = measured(spec("derpp", width=8))
    predicted = predict(run.spec).footprint
    assert predicted is not None
    assert run.footprint is not None
    assert predicted.peak_bytes == pytest.approx(run.footprint.peak_bytes, abs=FEW_BYTES)
    assert (predicted.peak_task, predicted.peak_phase) == (run.footprint.peak_task, run.footprint.peak_phase)
    for role, size in run.footprint.at_peak.items():
        assert predicted.at_peak[role] == pytest.approx(size, abs=1e-3 * predicted.peak_bytes), role
    for phase, peak in run.footprint.phases.items():
        assert predicted.phases[phase] == pytest.approx(peak, rel=0.01), phase


def test_images_that_are_there_already_are_predicted_once() -> None:
    """Of a perceptron the images are much of what an evaluation holds."""
    (run,) = measured(spec("sgd", stream="split-fashion-mini", network="mlp", batch_size=4))
    predicted = predict(run.spec).footprint
    assert predicted is not None
    assert run.footprint is not None
    assert predicted.phases == pytest.approx(run.footprint.phases, abs=FEW_BYTES)


def test_lean_peaks_are_predicted_to_a_thousandth() -> None:
    (run,) = measured(spec("sparcl-er", "lean", width=4, batch_size=8, measure="peak"))
    assert run.allocator is not None
    assert predicted_peak_bytes(run.spec) == pytest.approx(run.allocator.peak_bytes, rel=1e-3)


def test_one_small_image_is_unfolded_into_columns_instead_of_blocked() -> None:
    """The sizes are those that the real allocator's log has for the same calls (torch 2.15)."""
    recorder = ShapeRecorder()
    recorder.start()
    image, weight = torch.randn(1, 8, 32, 32, device="meta"), torch.randn(8, 8, 3, 3, device="meta")
    marks = [recorder.mark()]
    out = torch.conv2d(image, weight, None, 1, 1)
    marks.append(recorder.mark())
    sizes = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    kept = torch.ops.aten.convolution_backward(out, image, weight, None, *sizes)
    marks.append(recorder.mark())
    log = recorder.stop()
    forward, backward = (
        [event.size_bytes for event in log.events[log.marks[first] : log.marks[last]]]
        for first, last in pairwise(marks)
    )
    columns, map_bytes = 4 * 72 * 1024, 4 * 8 * 1024
    assert forward == [columns, map_bytes, -columns]
    assert backward == [map_bytes, 4 * 8 * 72, columns, -columns]
    assert len(kept) == 3


@pytest.mark.parametrize(
    ("cap", "forward", "of_input", "of_weight"),
    [
        # what 37 channels in and 21 out are padded to: 48 and 32, or 40 and 24
        (
            "AVX512",
            [1572864, 55296, 1048576, -1572864, -55296, 688128, -1048576],
            [1048576, 55296, 1572864, -1048576, -55296, 1212416, -1572864],
            [1048576, 1572864, 55296, -1048576, -1572864, -1212416, 1212416, 27972, -55296],
        ),
        (
            "AVX2",
            [1310720, 34560, 786432, -1310720, -34560, 688128, -786432],
            [786432, 34560, 1310720, -786432, -34560, 1212416, -1310720],
            [786432, 1310720, 34560, -786432, -1310720, -1212416, 1212416, 27972, -34560],
        ),
    ],
)
def test_channels_are_padded_to_blocks_of_what_a_vector_holds(
    cap: str, forward: list[int], of_input: list[int], of_weight: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real allocator's log has it for the same calls on such processors (torch 2.15), in the order of a peak."""
    monkeypatch.setattr("clmem.harness.memory.predicting.scratch.vectors_here", lambda: cap)
    x, weight = torch.randn(8, 37, 32, 32, device="meta"), torch.randn(21, 37, 3, 3, device="meta")
    recorder = ShapeRecorder()
    recorder.start()
    out = torch.conv2d(x, weight, None, 1, 1)
    middle = recorder.mark()
    sizes = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    kept = torch.ops.aten.convolution_backward(out, x, weight, None, *sizes)
    log = recorder.stop()
    events = [event.size_bytes for event in log.events]
    assert events[: log.marks[middle]] == forward
    assert events[log.marks[middle] :] == of_input + of_weight
    assert len(kept) == 3


@pytest.mark.skipif(vectors() not in ("AVX2", "AVX512"), reason="oneDNN for x86 alone")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wanted", [[True, True, False], [True, False, False], [False, True, False]])
@pytest.mark.parametrize(
    ("channels", "kernel", "groups"),
    [
        *(((5, 3), 3, 1), ((12, 20), 3, 1), ((24, 16), 3, 1), ((24, 40), 1, 1)),
        *(((24, 24), 3, 24), ((24, 24), 5, 24), ((12, 12), 3, 12)),  # each channel alone
        *(((104, 104), 3, 13), ((48, 48), 3, 2), ((12, 12), 3, 3), ((96, 96), 3, 8)),  # 8, 24, 4 and 12 together
    ],
)
def test_the_copies_of_a_convolution_are_those_of_this_processor(
    channels: tuple[int, int], kernel: int, groups: int, stride: int, wanted: list[bool]
) -> None:
    """Peaks of the real allocator, beside what is predicted for the same calls."""

    def run(device: str) -> None:
        x = torch.empty(16, channels[0], 16, 16, device=device)
        weight = torch.empty(channels[1], channels[0] // groups, kernel, kernel, device=device)
        shape = [stride, stride], [kernel // 2, kernel // 2], [1, 1]
        out = torch.conv2d(x, weight, None, *shape, groups)
        torch.ops.aten.convolution_backward(out, x, weight, None, *shape, False, [0, 0], groups, wanted)

    peaks: list[int] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # every thread takes a little for itself
    try:
        for recorder, device in ((LogRecorder(), "cpu"), (ShapeRecorder(), "meta")):
            recorder.start()
            run(device)
            peaks.append(max(accumulate(event.size_bytes for event in recorder.stop().events)))
    finally:
        torch.set_num_threads(threads)
    measured, predicted = peaks
    assert predicted == measured


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_gradients_of_a_shared_weight_are_added_as_autograd_does(uses: int) -> None:
    """Peaks of the real allocator beside predicted ones: of a linear weight the first two are added out of place."""

    def run(device: str) -> None:
        weight = torch.empty(25, 3072, device=device, requires_grad=True)
        images = [torch.empty(8, 3072, device=device) for _ in range(uses)]
        sum(torch.nn.functional.linear(x, weight).square().sum() for x in images).backward()  # type: ignore[union-attr]

    peaks = []
    for recorder, device in ((LogRecorder(), "cpu"), (ShapeRecorder(), "meta")):
        recorder.start()
        run(device)
        peaks.append(max(accumulate(event.size_bytes for event in recorder.stop().events)))
    measured, predicted = peaks
    assert predicted == measured


@pytest.mark.parametrize(("contiguous", "wanted", "maps"), [(True, True, 3), (False, True, 1), (True, False, 0)])
def test_the_backward_of_a_batch_norm_takes_one_more_map_for_a_while(contiguous: bool, wanted: bool, maps: int) -> None:
    """As the real allocator's log has it for the same calls (torch 2.15)."""
    x, per_channel = torch.randn(2, 16, 8, 8, device="meta"), torch.randn(16, device="meta")
    gradient = torch.randn_like(x, memory_format=torch.contiguous_format if contiguous else torch.channels_last)
    recorder = ShapeRecorder()
    recorder.start()
    statistics = [per_channel] * 4
    kept = torch.ops.aten.native_batch_norm_backward(
        gradient, x, per_channel, *statistics, True, 1e-5, [wanted, False, False]
    )
    sizes = [event.size_bytes for event in recorder.stop().events]
    assert sizes == [x.nbytes, x.nbytes, -x.nbytes][:maps]
    assert len(kept) == 3


def test_removed_channels_are_predicted_too() -> None:
    plain, lean = (
        predicted_peak_bytes(spec("lightcl-sparse", execution, width=4, batch_size=15))
        for execution in ("plain", "lean")
    )
    assert plain is not None
    assert lean is not None
    assert lean < plain / 2


def test_a_prediction_says_that_it_is_one_and_claims_no_measurement() -> None:
    result = predict(spec("sgd", width=4))
    assert result.spec.target == "predicted-cpu"
    assert measure_json(result)["target"] == "predicted-cpu"
    assert measure_json(result)["allocator"] is None
    text = measure_table(result)
    assert "predicted-cpu" in text
    assert "nothing instrumented" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_on_cuda_blocks_are_rounded_segments_reserved_and_the_library_keeps_a_workspace_per_thread() -> None:
    result = predict(spec("fdr", width=4, target="cuda"))
    footprint = result.footprint
    assert footprint is not None
    assert footprint.reserved_bytes is not None
    assert result.spec.target == "predicted-cuda"
    assert sum(footprint.at_peak.values()) == footprint.peak_bytes < footprint.reserved_bytes
    assert footprint.at_peak["rounding"] > 0
    assert footprint.workspace_at_peak["cuBLAS workspace"] == 2 * 8_519_680
    assert footprint.on_host == {"replay": 8 * 15}, "FDR's task numbers are read on the host"
    assert "the caching allocator would reserve" in measure_table(result)
    assert footprint.without_cudnn_bytes is not None
    assert footprint.without_cudnn_bytes <= footprint.peak_bytes
    assert measure_json(result)["without_cudnn_bytes"] == footprint.without_cudnn_bytes
    assert "the peak without: " in measure_table(result), "whoever reads the peak reads this too"


@pytest.mark.parametrize(
    ("kernel", "stride", "forward", "backward"),
    [
        # the weight transformed for 3x3 tiles; for 4x4 tiles beside the maps, of which 8x8 pixels have 4
        (3, 1, 16 * 8 * 25, [16 * 8 * 25, 36 * (16 * 8 + 2 * 4 * (16 + 8))]),
        (3, 2, 16 * 8 * 9, [16 * 8 * 9]),
        (1, 1, 16 * 8, [16 * 8]),
    ],
)
def test_cudnn_is_predicted_to_take_transforms_for_winograd_and_copies_of_weights_for_the_rest(
    kernel: int, stride: int, forward: int, backward: list[int]
) -> None:
    images, weight = torch.randn(2, 8, 8, 8, device="meta"), torch.randn(16, 8, kernel, kernel, device="meta")
    recorder = ShapeRecorder("cuda")
    recorder.start()
    out = torch.conv2d(images, weight, None, stride, kernel // 2)
    middle = recorder.mark()
    how = [stride, stride], [kernel // 2, kernel // 2], [1, 1], False, [0, 0], 1
    kept = torch.ops.aten.convolution_backward(out, images, weight, None, *how, [True, True, False])
    log = recorder.stop()
    taken = [event.size_bytes // 4 for event in log.events if event.op == CUDNN and event.size_bytes > 0]
    assert taken == [forward, *backward]
    assert [event.size_bytes for event in log.events[log.marks[middle] :] if event.op != CUDNN] == [
        images.nbytes,
        weight.nbytes,
    ]
    assert len(kept) == 3


def test_grouped_convolutions_and_other_types_are_not_taken_for_winograd() -> None:
    for groups, dtype in ((2, torch.float32), (1, torch.float64)):
        images = torch.randn(2, 8, 8, 8, device="meta", dtype=dtype)
        weight = torch.randn(16, 8 // groups, 3, 3, device="meta", dtype=dtype)
        recorder = ShapeRecorder("cuda")
        recorder.start()
        torch.conv2d(images, weight, None, 1, 1, groups=groups)
        assert [e.size_bytes for e in recorder.stop().events if e.op == CUDNN and e.size_bytes > 0] == [weight.nbytes]


def test_on_cuda_no_run_fits_where_it_may_not_reserve_what_it_needs() -> None:
    wanted = spec("sgd", width=4, target="cuda")
    peak = predict(wanted).footprint
    assert peak is not None
    assert peak.without_cudnn_bytes is not None
    with pytest.raises(OutOfReservedError):
        predict(wanted, limit_bytes=peak.without_cudnn_bytes - 1)
    limited = predict(wanted, limit_bytes=peak.reserved_bytes).footprint
    assert limited == peak.model_copy(update={"without_cudnn_bytes": None})


def test_what_torch_cannot_do_without_a_device_is_refused() -> None:
    with pytest.raises(UsageError, match="autocast=bfloat16 cannot be predicted"):
        predict(spec("sgd", "autocast=bfloat16"))
    assert predicted_peak_bytes(spec("sgd", "autocast=bfloat16")) is None


def test_a_method_that_reads_values_is_refused_with_the_line_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_step(self: SGD, batch: Batch, outputs: list[Outputs]) -> None:
        outputs[0].logits.tolist()

    monkeypatch.setattr(SGD, "after_step", after_step)
    with pytest.raises(UsageError, match=r"'sgd' reads values in test_prediction.py:\d+ \(outputs\[0\].logits.tolist"):
        predict(spec("sgd", width=1, batch_size=2))
    assert predicted_peak_bytes(spec("sgd", width=1, batch_size=2)) is None


def test_a_branch_on_a_value_is_named_because_a_prediction_guesses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_step(self: SGD, batch: Batch, outputs: list[Outputs]) -> None:
        if outputs[0].logits.sum() < 0 and outputs[0].logits.sum().item() < 1:
            self.kept = 1

    assert predict(spec("sgd", width=1, batch_size=2)).notes == []
    monkeypatch.setattr(SGD, "after_step", after_step)
    (note,) = predict(spec("sgd", width=1, batch_size=2)).notes
    assert note.startswith(f"a value is read in {__file__}:")
    assert "a number was taken for 0 and a comparison for true" in note


def test_maps_with_channels_last_are_named_because_their_copies_are_not_known() -> None:
    notes = predict(spec("sgd", network="torchvision:convnext_tiny", width=64, batch_size=2)).notes
    assert notes == [
        "the network has convolutions of maps laid out with channels last, whose copies clmem does not know; the peak "
        "may be some percent off, so measure it"
    ]


def test_a_fault_of_a_method_is_named_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_step(self: SGD, batch: Batch, outputs: list[Outputs]) -> None:
        raise KeyError("layer9")

    monkeypatch.setattr(SGD, "after_step", after_step)
    with pytest.raises(ClmemError, match=r"'sgd' failed while it was predicted: KeyError.*test_prediction.py:\d+"):
        predict(spec("sgd", width=1, batch_size=2))


def test_a_method_that_ends_the_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SGD, "after_step", lambda *given: sys.exit())
    with pytest.raises(ClmemError, match=r"'sgd' failed while it was predicted: SystemExit"):
        predict(spec("sgd", width=1, batch_size=2))


def test_a_method_that_fails_as_it_is_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SGD, *given: object) -> None:
        raise KeyError("layer9")

    monkeypatch.setattr(SGD, "__init__", fail)
    with pytest.raises(ClmemError, match=r"'sgd' failed while it was predicted: KeyError.*test_prediction.py:\d+"):
        predict(spec("sgd", width=1, batch_size=2))


def test_what_a_method_prints_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def after_step(*given: object) -> None:
        print("from a method")
        os.write(1, b"from below\n")

    monkeypatch.setattr(SGD, "after_step", after_step)
    print("before")
    predict(spec("sgd", width=1, batch_size=2))
    print("after")
    printed = capfd.readouterr()
    assert printed.out == "before\nafter\n"
    assert "from a method" in printed.err
    assert "from below" in printed.err


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_stays_closed_and_takes_nothing(closed: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import os\nfrom clmem.harness.output import printing_to_stderr\n"
        "with printing_to_stderr():\n    print('a'), os.write(1, b'b')\n"
        f"try:\n    os.fstat({closed})\nexcept OSError:\n    os.write({3 - closed}, b'closed')"
    )
    other = 3 - closed
    command = ["bash", "-c", f'"$@" {closed}>&- {other}>{log}', "bash", sys.executable, "-c", code]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[3]).returncode == 0
    assert sorted(log.read_text().split()) == {1: ["a", "bclosed"], 2: ["closed"]}[closed]


def test_one_thread_at_a_time_diverts_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    def divert() -> None:
        for _ in range(50):
            with printing_to_stderr():
                os.write(1, b"diverted\n")

    threads = [Thread(target=divert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "diverted\n" * 200)


@pytest.mark.parametrize("call", ["bitwise_or_", "bitwise_and_"])
def test_shapes_that_do_not_fit_are_refused_in_place(call: str) -> None:
    recorder = ShapeRecorder()
    recorder.start()
    try:
        bits = torch.zeros(4, dtype=torch.uint8, device="meta")
        assert bits.bitwise_or_(torch.zeros(4, dtype=torch.uint8, device="meta")) is bits
        with pytest.raises(RuntimeError):
            getattr(bits, call)(torch.zeros(3, dtype=torch.uint8, device="meta"))
    finally:
        recorder.stop()


def result(method: str, **environment: str) -> RunResult:
    return RunResult(run_id=method, spec=spec(method, width=4), environment=environment)  # type: ignore[call-arg]


def test_runs_are_predicted_for_the_vectors_that_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    here = vectors()
    peaks = {}
    for cap in ("AVX2", "AVX512"):
        monkeypatch.setattr("clmem.harness.memory.predicting.scratch.vectors_here", lambda cap=cap: cap)
        peaks[cap] = predicted_peak_bytes(result("sgd").spec)
    monkeypatch.setattr("clmem.harness.memory.predicting.scratch.vectors_here", lambda: here)
    runs = [result("sgd", vectors="AVX2"), result("sgd", vectors="AVX512"), result("sgd")]
    found = [peak.peak_bytes for peak in predicted_peaks(runs)]
    assert peaks["AVX2"] != peaks["AVX512"]
    assert found == [peaks["AVX2"], peaks["AVX512"], peaks["AVX512" if here == "AVX512" else "AVX2"]]


def test_runs_of_another_torch_or_method_are_incomparable() -> None:
    public = torch.__version__.partition("+")[0]
    assert why_incomparable(result("sgd")) is None
    assert why_incomparable(result("sgd", torch=f"{public}+cu130")) is None
    assert "torch 1.0.0" in str(why_incomparable(result("sgd", torch="1.0.0")))
    changed = result("sgd").model_copy(update={"code": {"method": "0" * 16}})
    assert "changed since" in str(why_incomparable(changed))


def test_the_error_of_every_prediction_stands_beside_its_measurement() -> None:
    run = RunResult(
        run_id="r", spec=spec("sgd"), status="ok", allocator={"kind": "cpu", "peak_bytes": 1000, "by_phase": []}
    )  # type: ignore[arg-type]
    other = run.model_copy(update={"spec": spec("er", "lean")})
    rows = json.loads(prediction_json([run, other], [1010, None]))
    assert [(row["predicted_bytes"], row["measured_bytes"]) for row in rows] == [(1010, 1000), (None, 1000)]
    text = prediction_table([run, other], [1010, None])
    assert "+1.000" in text
    assert "er (lean)" in text
    assert text.endswith("1 of 2 runs predicted; largest error 1.000 %")
