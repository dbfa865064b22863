"""What a terminal shows of a probe, as text and as JSON, against numbers put down by hand."""

from __future__ import annotations

from clmem.harness.answers.probe import Layer, Probe
from clmem.harness.specs.run import RunSpec
from clmem.reports.terminal.probes import probe_json, probe_table

PROBE = Probe(
    accuracy=0.8,
    tasks=4,
    layers=[Layer("layer2", 0.6120, 0.765, 0.25), Layer("fc", 0.05, 0.0625, -0.5), Layer("last", 0.0, None, None)],
)
SPEC = RunSpec(method="sgd", stream="split-cifar10", config={"lr": 0.05}, width=2, epochs=3)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every line by its first word."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_accuracies_are_percentages_and_ratios_are_not() -> None:
    shown = rows(probe_table(PROBE, SPEC))
    assert shown["(nothing)"] == ["80.0", "1.000"]
    assert shown["layer2"] == ["61.2", "0.765", "0.250"]
    assert shown["fc"] == ["5.0", "0.062", "-0.500"]


def test_a_ratio_over_nothing_is_no_number() -> None:
    assert rows(probe_table(PROBE, SPEC))["last"] == ["0.0", "—", "—"]


def test_a_probe_says_how_it_was_taken() -> None:
    text = " ".join(probe_table(PROBE, SPEC).split())
    assert "sgd on split-cifar10, resnet18 (width 2), 3 epochs, lr 0.05, seed 0" in text
    assert "mean over 4 new tasks" in text
    short = SPEC.model_copy(update={"steps_per_task": 7, "epochs": 1, "weights": "w@1f"})
    text = " ".join(probe_table(PROBE, short).split())
    assert "(width 2, from w@1f), 1 epoch of at most 7 steps, lr 0.05" in text


def test_a_probe_says_when_layers_freeze_and_that_its_measures_are_our_own() -> None:
    text = " ".join(probe_table(PROBE, SPEC).split())
    assert "everything learns in the first task; what lies before this boundary is frozen afterwards" in text
    assert "clmem's own definitions, and no method uses them" in text


def test_json_has_fractions_and_the_spec() -> None:
    told = probe_json(PROBE, SPEC)
    assert (told["accuracy"], told["tasks"]) == (0.8, 4)
    assert told["layers"][1] == {"boundary": "fc", "accuracy": 0.05, "plasticity": 0.0625, "stability": -0.5}
    assert told["spec"]["epochs"] == 3
    assert "steps_per_task" not in told["spec"], "what was not asked for is left out"
