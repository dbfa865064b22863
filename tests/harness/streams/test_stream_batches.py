"""A batch depends on (data set, seed, task, epoch, step, batch size) and on nothing else; tasks cover their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.harness.errors import UsageError
from clmem.harness.streams import STREAMS, open_stream
from clmem.harness.streams.catalog import lookup
from clmem.harness.streams.stream import TaskStream
from clmem.methods.base import Batch


def mini(**changes: object) -> TaskStream:
    options: dict[str, object] = {"seed": 0, "batch_size": 32, "epochs": 2}
    return open_stream("split-fashion-mini", **{**options, **changes})  # type: ignore[arg-type]


def noise(**changes: object) -> TaskStream:
    options: dict[str, object] = {"seed": 0, "batch_size": 8, "epochs": 3, "steps_per_task": 4}
    return open_stream("synthetic-cifar10", **{**options, **changes})  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    where = (a.classes, a.task, a.epoch, a.step) == (b.classes, b.task, b.epoch, b.step)
    return (
        where and np.array_equal(a.raw, b.raw) and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    )


PLACES = st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3))


@settings(deadline=None, max_examples=25)
@given(places=st.lists(PLACES, min_size=2, max_size=8))
def test_a_batch_is_the_same_whatever_was_asked_before(places: list[tuple[int, int, int]]) -> None:
    stream = noise()
    forth = [stream.train_task(t).batch(epoch, step) for t, epoch, step in places]
    back = [stream.train_task(t).batch(epoch, step) for t, epoch, step in reversed(places)]
    alone = [noise().train_task(t).batch(epoch, step) for t, epoch, step in places]
    assert all(same(a, b) for a, b in zip(forth, reversed(back), strict=True))
    assert all(same(a, b) for a, b in zip(forth, alone, strict=True))


@settings(deadline=None, max_examples=25)
@given(a=PLACES, b=PLACES, seeds=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
def test_batches_of_another_place_or_seed_differ(
    a: tuple[int, int, int], b: tuple[int, int, int], seeds: tuple[int, int]
) -> None:
    one = noise(seed=seeds[0]).train_task(a[0]).batch(*a[1:])
    other = noise(seed=seeds[1]).train_task(b[0]).batch(*b[1:])
    assert torch.equal(one.images, other.images) == ((a, seeds[0]) == (b, seeds[1]))


def test_global_random_state_neither_moves_nor_is_moved() -> None:
    before = noise().train_task(0).batch(0, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.get_rng_state(), np.random.get_state()[1]
    after = noise().train_task(0).batch(0, 0)
    assert same(before, after)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert np.array_equal(np.random.get_state()[1], expected[1])  # type: ignore[arg-type]


def test_a_consumer_that_writes_into_its_batch_changes_no_other() -> None:
    stream = mini()
    batch = stream.train_task(0).batch(0, 0)
    kept = batch.raw.copy()
    batch.raw[:] = 7
    batch.images.zero_()
    batch.labels.zero_()
    assert np.array_equal(stream.train_task(0).batch(0, 0).raw, kept)
    assert same(stream.train_task(0).batch(0, 0), mini().train_task(0).batch(0, 0))


def test_the_first_draws_are_pinned() -> None:
    # Guards against a change that is consistent with itself but not with published results.
    stream = mini(epochs=1, steps_per_task=2)
    for t in range(stream.num_tasks):
        list(stream.train_batches(t))
    assert stream.fingerprint == "38b028a5bd38da78bbe98ac12680159a"
    assert stream.data_digest == "b719fb6eca3352d36952c7fdcac98ddb"


def test_training_batches_come_in_the_order_of_epochs_and_steps() -> None:
    stream = noise()
    task = stream.train_task(1)
    batches = list(stream.train_batches(1))
    assert [(b.epoch, b.step) for b in batches] == [(e, s) for e in range(3) for s in range(4)]
    assert all(same(b, task.batch(b.epoch, b.step)) for b in batches)


def test_no_training_sample_comes_twice_in_an_epoch_and_other_ones_are_left_over_in_the_next() -> None:
    stream = mini()
    seen: list[list[bytes]] = []
    for epoch in range(2):
        batches = [b for b in stream.train_batches(3) if b.epoch == epoch]
        seen.append([sample.tobytes() for b in batches for sample in b.raw])
    assert len(seen[0]) == len(set(seen[0])) == len(seen[1]) == len(set(seen[1])) == 992
    assert len(set(seen[0]) | set(seen[1])) == 1000
    assert seen[0][:32] != seen[1][:32]


@pytest.mark.parametrize("name", ["split-fashion-mini", "synthetic-cifar100", "synthetic-tinyimagenet"])
def test_a_task_holds_its_classes_and_no_other(name: str) -> None:
    stream = open_stream(name, seed=0, batch_size=256, epochs=1, steps_per_task=3)
    assert [c for classes in stream.tasks for c in classes] == list(range(stream.num_classes))
    for t, classes in enumerate(stream.tasks):
        assert set(torch.cat([b.labels for b in stream.train_batches(t)]).tolist()) == set(classes)
        assert set(torch.cat([labels for _, labels in stream.test_batches(t)]).tolist()) == set(classes)


def test_every_training_batch_is_full_and_no_test_image_is_left_out() -> None:
    sizes = [len(b.labels) for b in mini(epochs=1).train_batches(0)]
    assert sizes == [32] * 31
    assert [len(labels) for _, labels in mini(batch_size=64).test_batches(0)] == [64, 64, 64, 8]


def test_a_cap_shortens_epochs_without_changing_their_batches() -> None:
    capped = list(mini(steps_per_task=3).train_batches(2))
    whole = mini().train_task(2)
    assert [(b.epoch, b.step) for b in capped] == [(e, s) for e in range(2) for s in range(3)]
    assert all(same(b, whole.batch(b.epoch, b.step)) for b in capped)
    assert mini(steps_per_task=1000).train_task(2).steps_per_epoch == 31


def test_joint_training_is_one_task_of_every_class_tested_on_the_original_tasks() -> None:
    stream = mini(joint=True, epochs=1)
    raw = [sample.tobytes() for b in stream.train_batches(0) for sample in b.raw]
    assert len(raw) == 156 * 32
    assert stream.num_train_tasks == 1
    assert stream.num_tasks == 5
    assert stream.train_task(0).classes == range(10)
    assert [set(torch.cat([y for _, y in stream.test_batches(t)]).tolist()) for t in range(5)] == [
        set(classes) for classes in mini().tasks
    ]
    with pytest.raises(IndexError):
        stream.train_task(1)


def test_joint_training_gets_the_steps_of_all_tasks() -> None:
    assert mini(joint=True, steps_per_task=3).train_task(0).steps_per_epoch == 15
    assert set(torch.cat([b.labels for b in mini(joint=True, steps_per_task=3).train_batches(0)]).tolist()) == set(
        range(10)
    )


def test_test_batches_can_be_limited_and_are_the_official_split_in_order() -> None:
    stream = mini()
    images = [x for x, _ in stream.test_batches(0)]
    assert torch.equal(torch.cat(images[:2]), torch.cat([x for x, _ in stream.test_batches(0, limit=2)]))
    assert sum(len(x) for x in images) == 200


@pytest.mark.parametrize("name", sorted(n for n in STREAMS if n.startswith("synthetic")))
def test_noise_has_no_accuracy_but_enough_of_everything(name: str) -> None:
    stream = open_stream(name, seed=0, batch_size=32, epochs=1)
    batch = stream.train_task(stream.num_tasks - 1).batch(0, 100)
    images, labels = next(stream.test_batches(0))
    assert not stream.has_data
    assert mini().has_data
    assert tuple(batch.images.shape[1:]) == tuple(images.shape[1:]) == stream.image_shape
    assert len(batch.labels) == len(labels) == 32
    assert len({sample.tobytes() for sample in batch.raw}) == 32


def test_places_outside_the_stream_are_refused() -> None:
    task = noise().train_task(0)
    for place in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(IndexError, match="outside the 3 epochs of 4 steps"):
            task.batch(*place)


def test_a_batch_larger_than_the_smallest_task_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"batch size 1001 .* 1000 training images"):
        mini(batch_size=1001)
    assert len(mini(batch_size=1000).train_task(0).batch(0, 0).labels) == 1000


@pytest.mark.parametrize("option", ["batch_size", "epochs", "steps_per_task"])
def test_numbers_below_one_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="is 0, but must be at least 1"):
        mini(**{option: 0})


def test_an_unknown_stream_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"no stream 'split-cifar': did you mean .*'split-cifar10'"):
        open_stream("split-cifar", seed=0, batch_size=1, epochs=1)


@pytest.mark.parametrize("digits", ["7", "2049", "9" * 5000])
def test_a_side_that_no_image_has_is_refused_however_long(digits: str) -> None:
    with pytest.raises(
        UsageError, match=rf"images of {digits[:20]}.* cannot be made; give a side of 8 to 2048"
    ) as refused:
        lookup(f"synthetic-{digits}px")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["synthetic-9\u0663px", "synthetic-032px", "synthetic--8px", "x" * 10**6, "\x1b[2J\n"])
def test_a_name_of_no_stream_is_answered_in_one_short_line(name: str) -> None:
    with pytest.raises(UsageError, match="there is no stream '") as refused:
        lookup(name)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_positions_say_which_of_its_tasks_samples_a_batch_holds() -> None:
    stream = mini(epochs=1)
    task = stream.train_task(1)
    positions = np.concatenate([batch.positions for batch in stream.train_batches(1)])
    assert len(set(positions)) == len(positions) == task.num_samples // 32 * 32
    assert set(positions) <= set(range(task.num_samples))
    again = mini(epochs=1).train_task(1).batch(0, 3)
    assert np.array_equal(again.positions, positions[96:128])


def test_a_tenth_of_every_class_is_held_out_for_validation_the_same_for_every_seed_and_never_trained_on() -> None:
    held_out = []
    for seed in (0, 1):
        stream = mini(seed=seed, epochs=1, validate=True)
        images, labels = zip(*stream.test_batches(2), strict=True)
        assert torch.bincount(torch.cat(labels), minlength=10).tolist() == [0, 0, 0, 0, 50, 50, 0, 0, 0, 0]
        assert stream.train_task(2).num_samples == 900
        held_out.append(torch.cat(images))
    assert torch.equal(*held_out)
    plain = {image.tobytes() for (image,) in zip(held_out[0].numpy(), strict=True)}
    every = [image.tobytes() for batch, _ in mini().test_batches(2) for image in batch.numpy()]
    assert plain.isdisjoint(every), "held out of the training samples, not of the test split"
    raw_of_validation = _raw(mini(validate=True, batch_size=50), 2)
    assert len(raw_of_validation) == 900
    assert len(_raw(mini(batch_size=50), 2) - raw_of_validation) == 100


def _raw(stream: TaskStream, t: int) -> set[bytes]:
    task = stream.train_task(t)
    return {image.tobytes() for step in range(task.steps_per_epoch) for image in task.batch(0, step).raw}


def test_a_joint_stream_holds_the_same_samples_out() -> None:
    stream = mini(validate=True, joint=True, batch_size=50)
    assert stream.train_task(0).num_samples == 4500
    separate = mini(validate=True, batch_size=50)
    assert _raw(stream, 0) == set().union(*(_raw(separate, t) for t in range(5)))


def test_a_synthetic_stream_takes_classes_and_sides() -> None:
    stream = open_stream("synthetic-cifar10", seed=0, batch_size=4, epochs=1, num_classes=1000, image_size=48)
    assert (stream.num_classes, stream.image_shape) == (1000, (3, 48, 48))
    task = stream.train_task(1)
    assert task.classes == range(200, 400)
    batch = task.batch(0, 0)
    assert batch.images.shape == (4, 3, 48, 48)
    assert set(batch.labels.tolist()) <= set(task.classes)


def test_every_one_of_many_classes_has_samples() -> None:
    stream = open_stream("synthetic-32px", seed=0, batch_size=1, epochs=1, num_classes=60_000)
    assert min(stream.train_task(index).num_samples for index in range(5)) == 12_000


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("split-cifar10", {"num_classes": 20}, "'split-cifar10' has 10 classes .* of synthetic streams alone"),
        ("split-fashion-mini", {"image_size": 64}, "images of 32 x 32; .* of synthetic streams alone"),
        ("synthetic-cifar10", {"num_classes": 12}, "num_classes is 12, .* give a multiple of 5"),
    ],
)
def test_sizes_that_a_stream_cannot_have_are_refused(name: str, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_stream(name, seed=0, batch_size=4, epochs=1, **sizes)  # type: ignore[arg-type]
