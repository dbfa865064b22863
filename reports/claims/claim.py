"""A claim file: published cells with their source, the formulas behind them, and where its rows are measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clmem.harness.errors import UsageError, nearest
from clmem.harness.files import expand, read_toml
from clmem.harness.specs.run import Scalar, spec_errors
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.text import clean, file_name
from clmem.reports.claims.arithmetic import LARGEST, calculate

Quantity = Literal["memory", "flops"]
Expression = float | str
"""A number, or arithmetic over the claim's names."""

FOLDER = Path(__file__).parent

DEEPEST = 50
"""Names that a name is defined by, one by the other."""

SMALLEST = 1e-6
"""Of a cell: cells are divided by one another."""

LONGEST = 2**16
"""Characters of all formulas of a claim: each is worked out on every data set, with and without the corrections."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Headline(_Part):
    """The ratio that is quoted: the memory of row `larger` over that of row `smaller` on one data set.

    word: `claimed` where the source says the ratio, `implied` where only its cells do.
    """

    word: Literal["claimed", "implied"] = "claimed"
    value: float = Field(ge=SMALLEST, le=LARGEST)
    larger: str
    smaller: str
    dataset: str


class Tolerance(_Part):
    """How far a recomputed cell may lie from the published one: MB, and a fraction of the FLOPs."""

    memory: float = Field(ge=SMALLEST, le=LARGEST)
    flops: float = Field(ge=SMALLEST, le=LARGEST)


class ClaimConditions(_Part):
    """What the measured runs must share with the claim."""

    network: str
    width: int = Field(ge=1, le=LARGEST, strict=True)
    batch_size: int = Field(ge=1, le=LARGEST, strict=True)
    buffer_size: int = Field(ge=0, le=LARGEST, strict=True)
    replay_size: int = Field(ge=0, le=LARGEST, strict=True)
    free: list[str] = Field(
        default_factory=list, description="settings that runs may choose for themselves, for they move no peak"
    )


class Dataset(_Part):
    """One data set of the table. streams: those whose runs have its shape. flops_unit: what a printed 1 stands for."""

    title: str
    streams: list[str]
    flops_unit: float = Field(ge=SMALLEST, le=LARGEST)
    names: dict[str, Expression]


class Formula(_Part):
    """How a cell comes about. kind: the class of the reconstruction, one of the claim's `classes`."""

    formula: Expression
    kind: str = Field("", alias="class")


class Published(_Part):
    """The cells of one row on one data set as printed; accuracies in percent with their deviation."""

    memory: float | None = Field(None, ge=SMALLEST, le=LARGEST)
    flops: float | None = Field(None, ge=SMALLEST, le=LARGEST)
    class_il: tuple[float, float] | None = None
    task_il: tuple[float, float] | None = None


class Measure(_Part):
    """A run that measures a row: its method and execution, and settings that its configuration must agree with."""

    method: str
    execution: str = PLAIN
    config: dict[str, Scalar] = Field(default_factory=dict)


class Row(_Part):
    """One row of the table.

    replays: whether the number of remembered samples shapes its peak. remembers: the method's setting with that number,
    where it is not the run's replay size. own_batches: whether it learns other batches, or in another order, than the
    others do. measured: by execution, e.g. `plain`. learns: what measures its accuracy, where the run measured `plain`
    does not. learnt_as: what is particular about that.
    """

    id: str
    title: str
    sparsity: float = 0.0
    replays: bool = False
    remembers: str = ""
    own_batches: bool = False
    memory: Formula
    flops: Formula
    published: dict[str, Published]
    measured: dict[str, Measure] = Field(default_factory=dict)
    learns: Measure | None = None
    learnt_as: str = ""

    @property
    def label(self) -> str:
        """Return e.g. "LightCL 0.9": the title, and the sparsity where there is one."""
        return f"{self.title} {self.sparsity:g}" if self.sparsity else self.title

    def formula(self, quantity: Quantity) -> Formula:
        """Return the formula of one quantity."""
        return self.memory if quantity == "memory" else self.flops


class Fix(_Part):
    """Something that the paper's own arithmetic leaves out, as a switch.

    names: symbols that take another value. add: by row, what its memory cell lacks. formula: by row, another formula.
    """

    id: str
    text: str
    names: dict[str, Expression] = Field(default_factory=dict)
    add: dict[str, Expression] = Field(default_factory=dict)
    formula: dict[str, Expression] = Field(default_factory=dict)


class Claim(_Part):
    """A published claim.

    suites: whose results measure its rows. against: rows that every row is divided into. waterfall: the row that is
    followed from its published cell to its measured peak. executions: what those mean that are this claim's own.
    """

    name: str
    title: str
    source: str
    headline: Headline
    tolerance: Tolerance
    conditions: ClaimConditions
    suites: list[str]
    against: list[str] = Field(max_length=20)
    waterfall: str
    executions: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    datasets: dict[str, Dataset] = Field(max_length=12, description="panels of one plot")
    names: dict[str, Expression]
    classes: dict[str, str]
    rows: list[Row] = Field(min_length=2, max_length=500)
    fixes: list[Fix] = Field(default_factory=list, max_length=100)

    def _expressions(self) -> Iterator[Expression]:
        """Return every formula of the file."""
        yield from self.names.values()
        for dataset in self.datasets.values():
            yield from dataset.names.values()
        for row in self.rows:
            yield from (row.memory.formula, row.flops.formula)
        for fix in self.fixes:
            yield from (*fix.names.values(), *fix.add.values(), *fix.formula.values())

    @model_validator(mode="after")
    def _refer_to_what_exists(self) -> Claim:
        length = sum(len(str(expression)) for expression in self._expressions())
        if length > LONGEST:
            raise ValueError(f"its formulas have {length:,} characters, more than the {LONGEST:,} that clmem works out")
        rows, datasets = [row.id for row in self.rows], list(self.datasets)
        for what, known in (("row", rows), ("fix", [fix.id for fix in self.fixes])):
            if len(set(known)) < len(known):
                raise ValueError(f"two entries share a {what} id; each needs one of its own")
        named = [self.headline.larger, self.headline.smaller, *self.against, self.waterfall]
        for name in named + [name for fix in self.fixes for name in (*fix.add, *fix.formula)]:
            _known(name, rows, "row")
        _known(self.headline.dataset, datasets, "data set")
        for row in self.rows:
            for dataset in row.published:
                _known(dataset, datasets, "data set")
            if row.memory.kind:
                _known(row.memory.kind, list(self.classes), "class")
        try:
            for ledger in (FormulaLedger(self, name, fixes) for name in datasets for fixes in ((), tuple(self.fixes))):
                for row in self.rows:
                    ledger.value(row, "memory")
                    ledger.value(row, "flops")
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def row(self, identifier: str) -> Row:
        """Return a row by its id."""
        return next(row for row in self.rows if row.id == identifier)

    def fix(self, identifier: str) -> Fix:
        """Return a correction by its id. Raises UsageError naming those that exist."""
        for fix in self.fixes:
            if fix.id == identifier:
                return fix
        known = ", ".join(fix.id for fix in self.fixes)
        raise UsageError(f"there is no correction {identifier!r}; known are {known}, and all for all of them")


class FormulaLedger:
    """The published way of counting on one data set, with some corrections; it recomputes cells.

    A name is looked up in the corrections, then in the data set, then in the claim, and may use other names. Each is
    worked out once.
    """

    def __init__(self, claim: Claim, dataset: str, fixes: tuple[Fix, ...] = ()) -> None:
        self.fixes = fixes
        corrected = {name: value for fix in fixes for name, value in fix.names.items()}
        self.names: Mapping[str, Expression] = {**claim.names, **claim.datasets[dataset].names, **corrected}
        self._values: dict[str, float] = {}

    def value(self, row: Row, quantity: Quantity) -> float:
        """Return a recomputed cell: memory in MB, FLOPs as a number.

        Raises UsageError for a formula that fails, which may do so with some corrections only, and for a cell that is
        not above zero, because cells are divided by one another.
        """
        try:
            value = self._cell(row, quantity)
        except ValueError as error:
            raise UsageError(f"row {clean(row.id, 80)} cannot be recomputed: {error}") from error
        if value < SMALLEST:
            raise UsageError(f"the {quantity} of row {clean(row.id, 80)}: {value:g} is not above zero")
        return value

    def _cell(self, row: Row, quantity: Quantity) -> float:
        if quantity == "flops":
            return self._evaluate(row.flops.formula, (row.id,))
        formula = row.memory.formula
        for fix in self.fixes:
            formula = fix.formula.get(row.id, formula)
        total = self._evaluate(formula, (row.id,))
        return total + math.fsum(self._evaluate(fix.add[row.id], (fix.id,)) for fix in self.fixes if row.id in fix.add)

    def _evaluate(self, expression: Expression, within: tuple[str, ...]) -> float:
        if not isinstance(expression, str):
            return float(expression)

        def look_up(name: str) -> float:
            if name not in self._values:
                if name in within:
                    raise ValueError(f"{name} is defined by itself ({' -> '.join([*within, name])})")
                if name not in self.names:
                    shown = clean(repr(expression), 200)
                    raise ValueError(f"{shown} uses {clean(name, 80)!r}, which is not among the claim's names")
                if len(within) > DEEPEST:
                    raise ValueError(f"{within[0]} is defined by a chain of more than {DEEPEST} names")
                self._values[name] = self._evaluate(self.names[name], (*within, name))
            return self._values[name]

        return calculate(expression, look_up)


def claim_names() -> list[str]:
    """Return the names of the claims that come with clmem, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_claim(name: str) -> Claim:
    """Read a claim by name, or a claim file by its path. Raises UsageError saying what is wrong."""
    if name.endswith(".toml") or "/" in name:
        path = expand(name)
    elif name in claim_names():
        path = FOLDER / f"{name}.toml"
    else:
        raise UsageError(
            f"there is no claim {clean(name, 80)!r}; give the path of a .toml file, or a name: "
            f"{nearest(name, claim_names())}"
        )
    values = read_toml(path)
    if "name" in values:
        raise UsageError(f"the claim file {path} has a 'name', but a claim is called as its file is; leave it out")
    try:
        return Claim.model_validate({**values, "name": file_name(path.stem)})
    except ValidationError as error:
        raise UsageError(f"the claim file {path} is wrong: {spec_errors(error, Claim.model_fields)}") from error


def _known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        raise ValueError(f"it names a {what} {clean(name, 80)!r} that does not exist: {nearest(name, known)}")
