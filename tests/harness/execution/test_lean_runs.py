"""Lean runs through the whole harness: checked, measured in three passes, smaller than plain ones, adding up."""

from __future__ import annotations

from typing import Any

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult
from clmem.harness.runs.checks import check_spec
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec


def spec(method: str, execution: str, **changes: Any) -> RunSpec:
    config = {"trunk": "frozen"} if method.startswith("lightcl") else {}
    values: dict[str, Any] = {"stream": "synthetic-cifar10", "width": 16, "buffer_size": 15, "replay_size": 15}
    return RunSpec(**{**values, "method": method, "execution": execution, "config": config, **changes})


def test_a_lean_run_adds_up_and_holds_less_than_a_plain_one() -> None:
    found: list[RunResult] = []
    specs = [spec("lightcl-sparse", "plain", measure="peak"), spec("lightcl-sparse", "lean")]
    for one in specs:
        check_spec(one)
    run_specs(specs, found.append)
    results = {result.spec.execution: result for result in found}
    plain, lean = results["plain"], results["lean"]
    assert [plain.status, lean.status, lean.checks, lean.observer_delta_bytes] == ["ok", "ok", [], 0]
    assert lean.allocator is not None
    assert plain.allocator is not None
    assert lean.footprint is not None
    assert sum(lean.footprint.at_peak.values()) == lean.allocator.peak_bytes < plain.allocator.peak_bytes / 2
    assert lean.execution["storage"] == "compact"
    assert (lean.flops_per_step or 0) < (plain.flops_per_step or 0), "channels that are not there take no operations"
    assert lean.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("method", "execution", "reason"),
    [
        ("derpp", "storage=compact", "this method has none"),
        ("derpp", "grouped_bn=true,backward=termwise", "choose one"),
    ],
)
def test_what_would_change_the_computation_is_refused_before_anything_starts(
    method: str, execution: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        check_spec(spec(method, execution))


@pytest.mark.parametrize("penalty", ["inplace", "implicit"])
def test_flattened_ewc_refuses_to_step_parameter_by_parameter(penalty: str) -> None:
    with pytest.raises(UsageError, match="need all of them together"):
        check_spec(spec("ewc", "optimizer_in_backward=true", config={"vectors": "flattened", "penalty": penalty}))
    check_spec(spec("ewc", "optimizer_in_backward=true", config={"penalty": penalty}))
