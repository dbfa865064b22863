"""A suite file: which methods are run on which streams, under which conditions, and the specs that this comes to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clmem.harness.errors import UsageError
from clmem.harness.files import expand, read_toml
from clmem.harness.specs.run import Conditions, Measured, RunSpec, Scalar, spec_errors, weights_label
from clmem.harness.specs.techniques import PLAIN, canonical
from clmem.harness.text import some

LONGEST_S = 366 * 24 * 3600
"""What one process may take at most."""
MOST_NAMES = 10_000
"""Methods, streams, seeds or variations of one suite."""
MOST_RUNS = 100_000
"""Of one suite."""
SHORT = {"epochs": 1, "steps_per_task": None}
"""How long a run trains that measures memory: its schedule is short whatever the suite says."""


def _each_once(values: list[Any]) -> list[Any]:
    twice = sorted(str(value) for value, number in Counter(values).items() if number > 1)
    if twice:
        raise ValueError(f"it names {', '.join(twice)} more than once")
    return values


Seed = Annotated[int, Field(ge=0, strict=True)]


class Variation(BaseModel):
    """What differs from the suite's: those of its methods and streams (all by default), in other executions and over
    other seeds if named, are run under these conditions too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[str] | None = None
    streams: list[str] | None = None
    executions: list[Annotated[str, AfterValidator(canonical)]] | None = None
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    batch_size: int | None = Field(None, strict=True)
    buffer_size: int | None = Field(None, strict=True)
    replay_size: int | None = Field(None, strict=True)
    config: dict[str, dict[str, Scalar]] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _only_once(cls, values: list[int] | None) -> list[int] | None:
        return None if values is None else _each_once(values)

    def conditions(self) -> dict[str, int]:
        """Return the conditions that it changes."""
        return self.model_dump(include={"batch_size", "buffer_size", "replay_size"}, exclude_none=True)


class Suite(Conditions):
    """A suite file: every method on every stream, its memory once and its accuracy once per seed.

    executions: how steps are carried out; every run once in each. config: per method, overrides of its
    hyper-parameters. vary: the suite is run once under each of these, and not under its own conditions alone.
    timeout_s: for one process.
    """

    title: str
    methods: list[str] = Field(min_length=1, max_length=MOST_NAMES)
    streams: list[str] = Field(min_length=1, max_length=MOST_NAMES)
    measure: list[Measured] = Field(default=["memory", "accuracy"])
    seeds: list[Seed] = Field(default=[0], min_length=1, max_length=MOST_NAMES)
    executions: list[Annotated[str, AfterValidator(canonical)]] = Field(default=[PLAIN], min_length=1)
    timeout_s: float = Field(3600, gt=0, le=LONGEST_S, strict=True)
    config: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    vary: list[Variation] = Field(default=[Variation()], min_length=1)

    @field_validator("methods", "streams", "measure", "seeds", "executions")
    @classmethod
    def _only_once(cls, values: list[Any]) -> list[Any]:
        return _each_once(values)

    @model_validator(mode="after")
    def _speaks_of_its_own_methods(self) -> Suite:
        own = {"methods": frozenset(self.methods), "streams": frozenset(self.streams)}
        for config in (self.config, *(variation.config for variation in self.vary)):
            for name in config:
                if name not in own["methods"]:
                    raise ValueError(
                        f"it sets [config.{name}] but does not run {name!r}; its methods are {some(self.methods)}"
                    )
        for variation in self.vary:
            for kind, named in (("methods", variation.methods), ("streams", variation.streams)):
                for name in named or []:
                    if name not in own[kind]:
                        known = some(getattr(self, kind))
                        raise ValueError(f"it varies {name!r} but does not run it; its {kind} are {known}")
        return self

    def specs(self) -> list[RunSpec]:
        """Return one spec per run, memory first. Raises UsageError for too many of them, or a wrong one."""
        number = sum(
            len(self.methods if one.methods is None else one.methods)
            * len(self.streams if one.streams is None else one.streams)
            * len(self.executions if one.executions is None else one.executions)
            * sum(len(one.seeds or self.seeds) if measure == "accuracy" else 1 for measure in self.measure)
            for one in self.vary
        )
        if number > MOST_RUNS:
            raise UsageError(f"the suite comes to {number:,} runs, more than {MOST_RUNS:,}; give it fewer of each")
        try:
            return self._specs()
        except ValidationError as error:
            raise UsageError(f"the suite is wrong: {spec_errors(error, list(RunSpec.model_fields))}") from error

    def _specs(self) -> list[RunSpec]:
        shared = {name: getattr(self, name) for name in Conditions.model_fields}
        if self.weights is not None:
            shared["weights"] = weights_label(self.weights)
        specs = [
            RunSpec(
                **{**shared, **({} if measure == "accuracy" else SHORT), **variation.conditions()},
                method=method,
                config={**self.config.get(method, {}), **variation.config.get(method, {})},
                stream=stream,
                seed=seed,
                execution=execution,
                measure=measure,
            )
            for measure in get_args(Measured)
            if measure in self.measure
            for variation in self.vary
            for seed in (variation.seeds or self.seeds if measure == "accuracy" else self.seeds[:1])
            for stream in (self.streams if variation.streams is None else variation.streams)
            for method in (self.methods if variation.methods is None else variation.methods)
            for execution in (self.executions if variation.executions is None else variation.executions)
        ]
        return list(dict.fromkeys(specs))


def load_suite(path: Path) -> Suite:
    """Read a suite file; its weights lie beside it. Raises UsageError naming the file and what is wrong in it."""
    values = read_toml(path)
    if isinstance(values.get("weights"), str):
        values["weights"] = str(path.parent / expand(values["weights"]))
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"the suite file {path} is wrong: {spec_errors(error, list(Suite.model_fields))}") from error
