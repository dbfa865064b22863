"""What `clmem list` and `clmem show` print fits 80 columns and is complete."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from clmem.harness.learning.cards import Hyperparameter, MethodCard, method_card
from clmem.harness.learning.registry import method_class, method_names
from clmem.harness.specs.fields import allowed
from clmem.harness.techniques.registry import TECHNIQUES
from clmem.reports.terminal.lists import method_text, techniques_json, techniques_text, two_columns


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


class Model(BaseModel):
    share: float = Field(0.5, gt=0, le=1)
    count: int = Field(0, ge=0, le=9)
    mode: Literal["a", "b", "c"] | None = None
    part: int | None = Field(None, ge=1)
    on: bool = False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("share", "a number, more than 0 and at most 1"),
        ("count", "a whole number from 0 to 9"),
        ("mode", "a, b or c"),
        ("part", "a whole number, at least 1"),
        ("on", "true or false"),
    ],
)
def test_what_a_field_takes_is_said_in_words(name: str, words: str) -> None:
    assert allowed(Model.model_fields[name]) == words


def test_every_technique_is_listed_with_values_and_exactness() -> None:
    text, listed = techniques_text(), techniques_json()
    assert widest(text) <= 80
    assert set(listed) == set(TECHNIQUES)
    inexact = {name for name, entry in listed.items() if not entry["exact"]}
    assert inexact == {"micro_batch", "frozen_weights", "autocast"}
    assert " ".join(text.split()).count("; inexact ") == len(inexact)
    assert listed["storage"]["values"] == ["masked", "compact", "sparse"]
    assert json.loads(json.dumps(listed)) == listed
    assert all(f"{name}=" in text for name in listed)


@pytest.mark.parametrize("name", method_names())
def test_a_card_shows_all_there_is_to_know_of_a_method(name: str) -> None:
    cls, card = method_class(name), method_card(name)
    text = method_text(card)
    assert widest(text) <= 80
    assert set(card.settings) == set(cls.Config.model_fields)
    assert all(setting.meaning and setting.allowed for setting in card.settings.values())
    assert all(f"{key}=" in text for key in (*card.settings, *card.lean))
    assert ("Replay buffer: none" in text) is not cls.uses_buffer
    assert "layer4.1" in text
    assert card.paper or name in {"sgd", "joint", "head-only", "tail-sgd", "tail-er"}
    assert card.differs or name in {"head-only", "tail-sgd", "tail-er"}


def test_a_card_of_a_preset_has_the_defaults_of_the_preset() -> None:
    assert method_card("lightcl").settings["trunk_bn"].default == "eval"
    assert method_card("lightcl@released").settings["trunk_bn"].default == "train"


def test_a_method_that_says_nothing_of_itself_has_a_card() -> None:
    card = MethodCard("mute", "", "", {"lr": Hyperparameter(0.1, "", "")}, {}, {}, {}, {}, [])
    assert "It comes from no paper." in method_text(card)
    assert "none; name techniques" in method_text(card)


def test_a_name_without_a_description_keeps_its_line() -> None:
    assert two_columns({"a": "", "long": "text"}).splitlines() == ["a", "long  text"]


def test_a_description_stands_below_a_very_long_name() -> None:
    text = two_columns({"x" * 70: "word " * 30, "short": "text"})
    assert widest(text) <= 80
    assert text.splitlines()[0] == "x" * 70
    assert text.splitlines()[-1] == f"{'short':34}text"


def test_a_card_shows_odd_defaults_on_one_line() -> None:
    settings = {"order": Hyperparameter(list(range(1000)), "\x1b[31m", ""), "text": Hyperparameter("a\nb", "", "")}
    text = method_text(MethodCard("odd", "", "", settings, {}, {}, {}, {}, []))
    assert "text=a b" in text
    assert widest(text) <= 100
