"""Training steps that have fooled memory tools: the right role, to the byte, without moving the peak.

The steps are in `scenarios.py`. `MAP` is one feature map, `WEIGHT` one square weight; a layer of `chain` saves one map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Recording

MAP = 4 * 96 * 256
WEIGHT = 4 * 256 * 256
SCALARS = 64
"""More than the losses and step counters of any scenario, less than anything else."""


def test_observing_changes_no_peak_of_any_phase(recordings: dict[str, Recording]) -> None:
    moved = {name: (r.truth_peaks, r.peaks) for name, r in recordings.items() if r.truth_peaks != r.peaks}
    assert moved == {}
    assert len(recordings) > 25


def test_roles_sum_to_the_peak_of_the_pass_that_nobody_observed(recordings: dict[str, Recording]) -> None:
    for name, recording in recordings.items():
        if recording.error is None:
            peak = max(nbytes for _, _, nbytes in recording.truth_peaks)
            assert sum(recording.at_peak.values()) == recording.footprint["peak_bytes"] == peak, name


def test_only_the_scenarios_that_mean_to_break_the_books_do(recordings: dict[str, Recording]) -> None:
    assert [name for name, recording in recordings.items() if recording.error] == ["numpy_declared"]
    assert sorted(name for name, recording in recordings.items() if recording.undeclared) == [
        "graph_outlives_recording",
        "pruned",
        "pruned_declared",
        "undeclared_list",
    ]


def test_two_forwards_alive_hold_twice_the_activations_of_one(recordings: dict[str, Recording]) -> None:
    assert recordings["one_forward"].role_peaks["activations"] == 2 * MAP
    assert recordings["two_forwards"].role_peaks["activations"] == 4 * MAP
    assert recordings["two_forwards"].role_peaks["input"] == 2 * MAP
    assert recordings["two_forwards"].role_peaks["gradients"] == 2 * WEIGHT


def test_a_teacher_is_method_state_and_saves_nothing(recordings: dict[str, Recording]) -> None:
    teacher = recordings["teacher"]
    assert teacher.role_peaks["method_state"] == 2 * WEIGHT
    assert teacher.role_peaks["parameters"] == 2 * WEIGHT
    # The student's two maps, and the teacher's output, which the loss saves; none of the teacher's own.
    assert teacher.role_peaks["activations"] == 3 * MAP


def test_a_saved_view_of_the_replay_buffer_stays_replay(recordings: dict[str, Recording]) -> None:
    view = recordings["replay_view"]
    assert view.role_peaks["replay"] == view.at_peak["replay"] == 10 * MAP
    assert view.role_peaks["activations"] == 2 * MAP
    assert view.role_peaks["input"] == 0


def test_a_tensor_stashed_on_ctx_is_workspace_and_is_pointed_out(recordings: dict[str, Recording]) -> None:
    stashed, plain = recordings["stashed_on_ctx"], recordings["one_forward"]
    assert stashed.role_peaks["activations"] == plain.role_peaks["activations"]
    assert stashed.footprint["peak_bytes"] == plain.footprint["peak_bytes"] + MAP
    assert stashed.at_peak["workspace"] == plain.at_peak["workspace"] + MAP
    # the stashed map, and the gradient made of it before autograd first asks for a saved tensor
    assert stashed.held == [["aten::mul", 2 * MAP]]
    assert plain.held == []


@pytest.mark.parametrize("name", ["adam_single", "adam_foreach"])
def test_adams_state_is_two_copies_of_the_parameters_and_a_counter_each(
    recordings: dict[str, Recording], name: str
) -> None:
    parameters = 4 * WEIGHT
    assert recordings[name].at_peak["optimizer"] == 2 * parameters + 4 * 4
    assert recordings[name].at_peak["parameters"] == recordings[name].at_peak["gradients"] == parameters


def test_temporaries_of_a_foreach_optimizer_are_workspace(recordings: dict[str, Recording]) -> None:
    parameters = 4 * WEIGHT
    assert recordings["adam_single"].role_peaks["workspace"] < parameters
    assert parameters <= recordings["adam_foreach"].role_peaks["workspace"] < 1.1 * parameters


def test_channels_last_saves_what_the_default_format_saves(recordings: dict[str, Recording]) -> None:
    convolution_output, statistics = 4 * 8 * 16 * 32 * 32, 2 * 4 * 16
    for name in ("convolutions", "convolutions_channels_last"):
        # Two blocks: the convolution's output (for bn), the ReLU's output, and bn's mean and inverse deviation.
        assert recordings[name].role_peaks["activations"] == 2 * (2 * convolution_output + statistics)
        assert recordings[name].role_peaks["module_buffers"] == 2 * (2 * 4 * 16 + 8)


def test_gradients_of_a_fan_out_accumulate_in_place(recordings: dict[str, Recording]) -> None:
    fan_out = recordings["fan_out"]
    assert fan_out.role_peaks["activations"] == 5 * MAP
    assert fan_out.role_peaks["gradients"] == 5 * WEIGHT
    # At most the sum so far, the gradient to be added, and the one it is computed from.
    assert fan_out.role_peaks["workspace"] <= 3 * MAP + SCALARS


def test_an_in_place_relu_saves_the_same(recordings: dict[str, Recording]) -> None:
    assert recordings["relu_in_place"].role_peaks == recordings["one_forward"].role_peaks


def test_accumulating_over_two_backwards_holds_one_set_of_gradients(recordings: dict[str, Recording]) -> None:
    accumulated = recordings["gradient_accumulation"]
    assert accumulated.role_peaks["gradients"] == 4 * WEIGHT
    # The second backward adds one weight's gradient at a time, and passes two maps on.
    assert accumulated.role_peaks["workspace"] <= WEIGHT + 2 * MAP + SCALARS


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed_reentrant"])
def test_recomputed_activations_are_activations(recordings: dict[str, Recording], name: str) -> None:
    assert recordings["not_checkpointed"].role_peaks["activations"] == 9 * MAP
    # The inputs of blocks 2 and 3 (that of block 1 is the batch), and the three maps of the block recomputed.
    assert recordings[name].role_peaks["activations"] == (2 + 3) * MAP
    assert recordings[name].role_peaks["input"] == MAP


def test_tensors_offloaded_to_the_host_are_activations_where_the_host_is_the_device(
    recordings: dict[str, Recording],
) -> None:
    assert recordings["saved_on_cpu"].role_peaks["activations"] == 9 * MAP
    assert recordings["saved_on_cpu"].footprint["peak_bytes"] == recordings["not_checkpointed"].footprint["peak_bytes"]


def test_a_frozen_trunk_saves_nothing_and_has_no_gradients(recordings: dict[str, Recording]) -> None:
    frozen = recordings["frozen_trunk"]
    assert frozen.role_peaks["parameters"] == 6 * WEIGHT
    assert frozen.role_peaks["gradients"] == 2 * WEIGHT
    assert frozen.role_peaks["activations"] == (1 + 2) * MAP  # the trunk's output, and the tail's two maps


def test_frozen_layers_after_a_trainable_one_save_no_inputs(recordings: dict[str, Recording]) -> None:
    frozen = recordings["frozen_after_trainable"]
    assert frozen.role_peaks["parameters"] == 4 * WEIGHT
    assert frozen.role_peaks["gradients"] == WEIGHT
    assert frozen.role_peaks["activations"] == MAP  # the ReLU's output, kept by the ReLU alone


def test_a_boolean_mask_is_a_buffer_of_a_quarter_of_its_weight(recordings: dict[str, Recording]) -> None:
    masked = recordings["mask_buffer"]
    assert masked.role_peaks["module_buffers"] == WEIGHT // 4
    assert masked.role_peaks["parameters"] == masked.role_peaks["gradients"] == WEIGHT
    assert masked.role_peaks["activations"] == 0


def test_torchs_pruning_leaves_two_undeclared_tensors_behind_each_weight(recordings: dict[str, Recording]) -> None:
    pruned = recordings["pruned"]
    assert pruned.role_peaks["parameters"] == pruned.role_peaks["module_buffers"] == WEIGHT
    assert {item["bytes"] for item in pruned.undeclared} == {WEIGHT}
    # The mask that the pruning method was given, and the product of weight and mask: one before each step and the end.
    assert sorted(item["op"] for item in pruned.undeclared) == ["aten::mul", "aten::mul", "aten::mul", "aten::ones"]


def test_a_recomputed_weight_that_is_declared_is_method_state(recordings: dict[str, Recording]) -> None:
    declared = recordings["pruned_declared"]
    assert declared.at_peak["method_state"] == WEIGHT
    assert [(item["op"], item["bytes"]) for item in declared.undeclared] == [("aten::ones", WEIGHT)]


def test_gradients_that_an_optimizer_in_backward_drops_at_once_are_still_gradients(
    recordings: dict[str, Recording],
) -> None:
    assert recordings["optimizer_in_backward"].role_peaks["gradients"] == WEIGHT  # of six
    assert recordings["optimizer_in_backward"].role_peaks["activations"] == 6 * MAP


def test_gradients_reassigned_by_hand_are_gradients(recordings: dict[str, Recording]) -> None:
    by_hand = recordings["gradient_by_hand"]
    assert by_hand.at_peak["gradients"] == 2 * WEIGHT
    assert by_hand.role_peaks["gradients"] == 3 * WEIGHT  # one is the old and the new for a moment
    assert recordings["gradients_assigned"].at_peak["gradients"] == 2 * WEIGHT


def test_gradients_of_gradients_are_booked_where_they_end_up(recordings: dict[str, Recording]) -> None:
    double = recordings["gradients_of_gradients"]
    assert double.role_peaks["gradients"] == 2 * WEIGHT  # what the second backward leaves in the parameters
    assert double.role_peaks["activations"] >= 2 * WEIGHT  # the first gradients, which the second backward needs


def test_a_sparse_gradient_is_its_indices_and_values(recordings: dict[str, Recording]) -> None:
    assert recordings["sparse_gradient"].at_peak["gradients"] == MAP + 8 * 96
    assert recordings["sparse_gradient"].at_peak["parameters"] == 4 * 100 * 256


def test_memory_of_numpy_that_is_declared_is_refused_in_one_sentence(recordings: dict[str, Recording]) -> None:
    error = recordings["numpy_declared"].error
    assert error is not None
    assert "a replay tensor of 7,168 B" in error
    assert "copy it into a torch tensor" in error


def test_a_list_that_grows_across_phases_is_reported_with_its_size(recordings: dict[str, Recording]) -> None:
    undeclared = recordings["undeclared_list"].undeclared
    assert [(item["phase"], item["bytes"]) for item in undeclared] == [("step", MAP), ("the end", MAP)]


def test_a_map_that_outlives_its_graph_is_no_activation_any_more(recordings: dict[str, Recording]) -> None:
    kept = recordings["map_outlives_graph"]
    assert kept.role_peaks["activations"] == 2 * MAP
    assert "activations" not in kept.at_peak
    assert kept.footprint["workspace_at_peak"]["aten::clamp_min"] == MAP


def test_a_graph_that_outlives_the_recording_is_still_activations(recordings: dict[str, Recording]) -> None:
    graph = recordings["graph_outlives_recording"]
    assert graph.role_peaks["activations"] == 3 * MAP
    assert sum(item["bytes"] for item in graph.undeclared if item["role"] == "activations") == 3 * MAP


def test_tied_weights_and_overlapping_declarations_count_once(recordings: dict[str, Recording]) -> None:
    shared = recordings["shared_storage"]
    assert shared.role_peaks["parameters"] == WEIGHT
    assert shared.role_peaks["method_state"] == 5 * MAP  # comes before replay in the list of roles
    assert shared.role_peaks["replay"] == 0


def test_stacks_name_the_users_line_for_functions_and_for_operators(recordings: dict[str, Recording]) -> None:
    sites, line = recordings["sites"].sites, recordings["sites"].facts["line"]
    assert [site for site in sites if site.endswith(f"scenarios.py:{line} (allocates_here)")], sites
    assert [site for site in sites if site.endswith(" (chain)")], "a module's weights are made where it is built"
    assert not [site for site in sites if "/torch/" in site]


def test_the_peak_does_not_depend_on_threads_or_repeats(recordings: dict[str, Recording]) -> None:
    one, two, again = (recordings[f"resnet_{name}"] for name in ("one_thread", "two_threads", "one_thread_again"))
    assert one.truth_peaks == two.truth_peaks == again.truth_peaks
    assert one.footprint["at_peak"] == two.footprint["at_peak"] == again.footprint["at_peak"]
