"""What holds for every registered method: all it keeps is declared, and its chance is its own."""

from __future__ import annotations

import gc
import types

import numpy as np
import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_class, method_config, method_names
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Method
from tests.methods.toys import NUM_CLASSES, declared, make_batch, make_method, make_task, run_task, two_layers

NAMES = method_names()
SHAPE = {"size": 4, "side": 16}


def tiny_resnet() -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet18(NUM_CLASSES, width=2)


def reachable_tensors(method: Method) -> list[torch.Tensor]:
    """Return every tensor that lives because the method does; its network and its setting are others' business."""
    found: list[torch.Tensor] = []
    seen = {id(method.context), id(method.network), id(method)}
    todo: list[object] = [vars(method)]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found += [thing, *([thing.grad] if thing.is_leaf and thing.grad is not None else [])]
            assert thing.grad_fn is None, f"a tensor of shape {tuple(thing.shape)} keeps its graph alive"
        elif isinstance(thing, types.FunctionType):
            todo += [cell.cell_contents for cell in thing.__closure__ or ()] + list(thing.__defaults__ or ())
        else:
            todo += gc.get_referents(thing)
    return found


def assert_all_declared(method: Method, when: str) -> None:
    roles = method.memory_roles()
    assert set(roles) <= {"replay", "method_state"}
    storages = {t.untyped_storage().data_ptr() for tensors in roles.values() for t in tensors}
    storages |= {t.untyped_storage().data_ptr() for t in (*method.network.parameters(), *method.network.buffers())}
    for tensor in reachable_tensors(method):
        known = tensor.untyped_storage().nbytes() == 0 or tensor.untyped_storage().data_ptr() in storages
        assert known, f"{when}: a {tensor.dtype} of shape {tuple(tensor.shape)} is kept and not declared"


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_kept_across_steps_is_declared(name: str) -> None:
    method, runner = make_method(name, tiny_resnet(), image_shape=(3, 16, 16))
    for index in range(2):
        task = make_task(index, **SHAPE)
        method.before_task(task)
        assert_all_declared(method, f"before task {index}")
        for step in range(2):
            runner.learn(task.batch(0, step))
            assert_all_declared(method, f"step {step} of task {index}")
        method.after_task(task)
        assert_all_declared(method, f"after task {index}")


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_left_after_a_step(name: str) -> None:
    method, runner = make_method(name, tiny_resnet(), image_shape=(3, 16, 16))
    run_task(method, runner, 0, **SHAPE)
    assert all(parameter.grad is None for parameter in method.network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_learning_never_moves_the_global_generators(name: str) -> None:
    method, runner = make_method(name, tiny_resnet(), image_shape=(3, 16, 16))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    for index in range(2):
        run_task(method, runner, index, **SHAPE)
    method.predict(make_batch(0, **SHAPE).images, 0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_learns_the_same_weights(name: str) -> None:
    states = []
    for _ in range(2):
        method, runner = make_method(name, tiny_resnet(), image_shape=(3, 16, 16), replay_size=2)
        for index in range(2):
            run_task(method, runner, index, **SHAPE)
        states.append(method.network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_where_its_default_comes_from(name: str) -> None:
    fields = method_class(name).Config.model_fields
    assert all(field.description for field in fields.values())
    assert method_class(name).__module__ == f"clmem.methods.{name.replace('-', '_')}"


@pytest.mark.parametrize("name", NAMES)
def test_tuned_settings_are_settings(name: str) -> None:
    for stream in method_class(name).tuned:
        method_config(RunSpec(method=name, stream=stream))


def test_an_unknown_setting_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"'derpp' has no setting 'alhpa'.*'alpha'"):
        method_config(RunSpec(method="derpp", config={"alhpa": 0.3}))


def test_a_setting_out_of_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="keep_ratio"):
        method_config(RunSpec(method="lightcl", config={"keep_ratio": 1.5}))


@pytest.mark.parametrize(("stream", "beta"), [("split-cifar10", 0.5), ("split-tinyimagenet", 1.0)])
def test_derpp_is_tuned_by_stream(stream: str, beta: float) -> None:
    config = method_config(RunSpec(method="derpp", stream=stream))
    assert config.model_dump() == {"lr": 0.03, "head": "class_il", "alpha": 0.1, "beta": beta}


@pytest.mark.parametrize(("name", "logits_bytes"), [("er", 0), ("derpp", 4 * NUM_CLASSES)])
@pytest.mark.parametrize("slots", [7, 200])
def test_a_buffer_holds_its_bytes_in_full_after_one_step(name: str, logits_bytes: int, slots: int) -> None:
    method, runner = make_method(name, two_layers(), buffer_size=slots, image_shape=(3, 32, 32))
    runner.learn(make_batch(side=32))
    assert declared(method) == {"replay": slots * (3 * 32 * 32 + 8 + logits_bytes)}


@pytest.mark.parametrize("name", ["sgd", "joint", "tail-sgd"])
def test_methods_without_memory_declare_none(name: str) -> None:
    method, runner = make_method(name, two_layers())
    run_task(method, runner, 0)
    assert declared(method) == {}


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_replay_begins_with_the_second_batch_of_the_first_task(name: str) -> None:
    method, runner = make_method(name, two_layers(), replay_size=3)
    steps = []
    for step in range(2):
        steps.append([len(term.images) for term in next(iter(method.terms(make_batch(0, step))))])
        runner.learn(make_batch(0, step))
    assert steps == ([[4], [7]] if name == "er" else [[4], [4, 3, 3]])


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_replaying_nothing_is_plain_sgd(name: str) -> None:
    networks = two_layers(), two_layers()
    _, replaying = make_method(name, networks[0], {"lr": 0.1}, replay_size=0)
    _, plain = make_method("sgd", networks[1], {"lr": 0.1})
    for step in range(3):
        assert torch.equal(replaying.learn(make_batch(0, step)), plain.learn(make_batch(0, step)))
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
