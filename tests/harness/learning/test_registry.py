"""Methods by name: those of other packages too, of which the broken ones harm nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness import plugins
from clmem.harness.errors import UsageError
from clmem.harness.learning.descriptions import networks, own_description
from clmem.harness.learning.registry import check_execution, method_class, method_config, method_names
from clmem.harness.networks.registry import network_descriptions
from clmem.harness.results.source import own_methods
from clmem.harness.specs.run import RunSpec

Install = Callable[..., None]
GOOD = "from clmem.methods.sgd import SGD\nclass Good(SGD):\n    name = 'good'\n"


def refusal(name: str) -> str:
    with pytest.raises(UsageError) as refused:
        method_class(name)
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 900
    return said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
        ("def broken(:\n", "SyntaxError: "),
        ("x = 1", "has no attribute 'Bad'"),
        ("Bad = 3", "is no subclass of clmem.methods.base.Method"),
        ("class Bad: pass", "is no subclass of clmem.methods.base.Method"),
        ("from clmem.methods.base import Method\nclass Bad(Method): pass", "has no usable 'name'"),
        ("from clmem.methods.sgd import SGD\nclass Bad(SGD): presets = ['a']", "has no usable 'presets'"),
        ("from clmem.methods.sgd import SGD\nclass Bad(SGD): tuned = {'a': 1}", "has no usable 'tuned'"),
        ("from clmem.methods.sgd import SGD\nclass Bad(SGD): lean = None", "has no usable 'lean'"),
        ("from clmem.methods.sgd import SGD\nclass Bad(SGD): Config = dict", "has no usable 'Config'"),
        ("raise ValueError('\\x1b[31m\\n' + 'x' * 10**6)", "ValueError: "),
    ],
)
def test_a_broken_plug_in_is_one_sentence_and_the_others_work(source: str, said: str, install: Install) -> None:
    install({"bad_plugin.py": source, "good_plugin.py": GOOD}, {"bad": "bad_plugin:Bad", "good": "good_plugin:Good"})
    assert {"bad", "good", "sgd"} <= set(method_names())
    assert said in (sentence := refusal("bad"))
    assert "bad" in sentence
    assert method_class("good").name == "good"


def test_what_a_plug_in_prints_is_no_result(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install({"loud.py": f"print('hello')\n{GOOD}"}, {"loud": "loud:Good"})
    method_class("loud")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_ctrl_c_in_a_plug_in_stays_ctrl_c(install: Install) -> None:
    install({"slow.py": "raise KeyboardInterrupt"}, {"slow": "slow:Good"})
    with pytest.raises(KeyboardInterrupt):
        method_class("slow")


def test_two_plug_ins_of_one_name_are_refused_with_both(install: Install) -> None:
    install({"first.py": GOOD}, {"good": "first:Good"}, "first-package")
    install({"second.py": GOOD}, {"good": "second:Good"}, "second-package")
    assert method_names().count("good") == 1
    said = refusal("good")
    assert "there are 2 methods 'good'" in said
    assert "'first:Good'" in said
    assert "'second:Good'" in said


def test_a_plug_in_does_not_hide_a_method_of_ours(install: Install) -> None:
    install({"hiding.py": GOOD}, {"sgd": "hiding:Good"})
    assert "there are 2 methods 'sgd' (clmem itself and 'hiding:Good')" in refusal("sgd")


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "-", "x" * 200, "a@b", "é"])
def test_a_name_that_no_file_can_have_is_refused(name: str, install: Install) -> None:
    install({"named.py": GOOD}, {name: "named:Good"})
    assert method_names()
    assert "which is no name" in refusal(name) or "there is no method" in refusal(name)


def test_a_package_whose_list_cannot_be_read_is_passed_over(install: Install) -> None:
    install({}, "no equals sign here\n[[[\n", "unreadable")
    install({"good_plugin.py": GOOD}, {"good": "good_plugin:Good"}, "readable")
    assert "sgd" in method_names()
    assert method_class("sgd").name == "sgd"
    assert method_class("good").name == "good"


@given(st.text(max_size=300))
def test_any_unknown_name_is_one_short_sentence(name: str) -> None:
    if name.partition("@")[0] not in method_names() or "@" in name:
        refusal(name)


@pytest.mark.parametrize("name", ["sgd@", "sgd@released", "lightcl@\n", "sgd@" + "x" * 10**6])
def test_an_unknown_preset_is_refused_with_those_that_exist(name: str) -> None:
    assert "has no preset" in refusal(name)


def test_packages_are_read_once_however_many_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    reading = plugins.distributions

    def counted(**options: str) -> Iterator[metadata.Distribution]:
        nonlocal read
        read += 1
        return iter(reading(**options))

    def unreadable(**options: str) -> None:
        raise ValueError

    monkeypatch.setattr(plugins, "entry_points", unreadable)
    monkeypatch.setattr(plugins, "distributions", counted)
    plugins.entries_by_name.cache_clear()
    for _ in range(100):
        method_names()
        method_class("derpp")
    plugins.entries_by_name.cache_clear()
    assert read == 1


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(value: bool) -> None:
    with pytest.raises(UsageError, match=r"setting 'lr' of method 'sgd' is (True|False) but|lr is (True|False) but"):
        method_config(RunSpec(method="sgd", config={"lr": value}))


def test_settings_that_a_plug_in_cannot_read_are_one_sentence(install: Install) -> None:
    source = (
        "from pydantic import field_validator\nfrom clmem.methods.sgd import SGD\nclass Good(SGD):\n    name = 'good'\n"
        "    class Config(SGD.Config):\n        @field_validator('lr')\n        @classmethod\n"
        "        def halve(cls, value):\n            return {}['absent']\n"
    )
    install({"strict.py": source}, {"good": "strict:Good"})
    with pytest.raises(UsageError, match=r"cannot read its settings: KeyError: 'absent', in .*strict\.py:9"):
        method_config(RunSpec(method="good", config={"lr": 0.5}))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("clip: float = float('inf')", "it holds inf, which JSON cannot carry"),
        ("order: list[int] = list(range(1200))", "more than 1,000 values"),
        ("count: int = 10**30", "more than 64 bits"),
    ],
)
def test_settings_that_no_result_can_hold_are_one_sentence(setting: str, said: str, install: Install) -> None:
    source = f"{GOOD}    class Config(SGD.Config):\n        {setting}\n"
    install({"vast.py": source}, {"good": "vast:Good"})
    with pytest.raises(UsageError, match=f"settings of method 'good' cannot stand in a result: .*{said}"):
        method_config(RunSpec(method="good"))


@pytest.mark.parametrize("name", sorted(own_methods()))
def test_a_file_says_of_its_method_what_the_class_says(name: str) -> None:
    said, cls = own_description(name), method_class(name)
    assert said is not None
    assert said.headline == str(cls.__doc__).partition("\n")[0]
    assert said.presets == cls.presets


def test_files_say_of_networks_what_the_import_says() -> None:
    assert networks() == network_descriptions()


@pytest.mark.parametrize("execution", ["lean", "lean,trunk_chunk=8"])
def test_lean_is_refused_for_a_method_that_chose_no_techniques(execution: str, install: Install) -> None:
    install({"heavy.py": GOOD + "    lean = {}\n"}, {"good": "heavy:Good"})
    check_execution(RunSpec(method="good", execution="trunk_chunk=8"))
    check_execution(RunSpec(method="sgd", execution=execution))
    with pytest.raises(UsageError, match=f"'good' chose no techniques for lean execution, so --execution {execution}"):
        check_execution(RunSpec(method="good", execution=execution))


def test_a_method_takes_its_data_from_a_file_beside_it(install: Install) -> None:
    data = "[lean]\nconv_slice = 2\n[tuned.split-cifar10]\nlr = 0.5\n[presets.fast]\nlr = 1.0\n"
    install({"good_plugin.py": GOOD, "good.toml": data}, {"good": "good_plugin:Good"})
    found = method_class("good")
    assert found.lean == {"conv_slice": 2}
    assert method_config(RunSpec(method="good", stream="split-cifar10")).lr == 0.5
    assert method_config(RunSpec(method="good@fast")).lr == 1.0


@pytest.mark.parametrize(
    ("code", "data", "said"),
    [
        ("", "[tune]\nlr = 1\n", "'tune', which is none of tuned, presets, lean"),
        ("    lean = {}\n", "[lean]\n", "'lean', which stands in the class already"),
        ("", "[lean\n", "TOMLDecodeError"),
    ],
)
def test_a_wrong_data_file_is_one_sentence(code: str, data: str, said: str, install: Install) -> None:
    install({"good_plugin.py": GOOD + code, "good.toml": data}, {"good": "good_plugin:Good"})
    assert said in refusal("good")


def test_the_data_of_a_base_class_reaches_its_subclasses() -> None:
    assert method_class("tail-er").lean
    assert method_class("sparcl-er").presets == {"released": {"masks": "float32"}}
