"""A claim file: published cells with their source, the formulas behind them, and where its rows are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from simpleeval import InvalidExpression, SimpleEval

from harness.errors import UsageError, nearest
from harness.files import read_toml
from harness.spec import Scalar, spec_errors
from harness.techniques import PLAIN

Quantity = Literal["memory", "flops"]
Expression = float | str
"""A number, or arithmetic over the claim's names."""

FOLDER = Path(__file__).parent


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Headline(_Part):
    """The ratio that is quoted: the memory of row `larger` over that of row `smaller` on one data set.

    word: `claimed` where the source says the ratio, `implied` where only its cells do.
    """

    word: Literal["claimed", "implied"] = "claimed"
    value: float = Field(gt=0)
    larger: str
    smaller: str
    dataset: str


class Tolerance(_Part):
    """How far a recomputed cell may lie from the published one: MB, and a fraction of the FLOPs."""

    memory: float = Field(gt=0)
    flops: float = Field(gt=0)


class Conditions(_Part):
    """What the measured runs must share with the claim."""

    network: str
    width: int
    batch_size: int
    buffer_size: int
    replay_size: int
    free: list[str] = Field(
        default_factory=list, description="settings that runs may choose for themselves, for they move no peak"
    )


class Dataset(_Part):
    """One data set of the table. streams: those whose runs have its shape. flops_unit: what a printed 1 stands for."""

    title: str
    streams: list[str]
    flops_unit: float
    names: dict[str, Expression]


class Formula(_Part):
    """How a cell comes about. kind: the class of the reconstruction, one of the claim's `classes`."""

    formula: Expression
    kind: str = Field("", alias="class")


class Published(_Part):
    """The cells of one row on one data set as printed; accuracies in percent with their deviation."""

    memory: float | None = None
    flops: float | None = None
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
    """Something that the published ledger leaves out, as a switch.

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
    conditions: Conditions
    suites: list[str]
    against: list[str]
    waterfall: str
    executions: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    datasets: dict[str, Dataset]
    names: dict[str, Expression]
    classes: dict[str, str]
    rows: list[Row] = Field(min_length=2)
    fixes: list[Fix] = Field(default_factory=list)

    @model_validator(mode="after")
    def _refer_to_what_exists(self) -> Claim:
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
        for ledger in (Ledger(self, name, fixes) for name in datasets for fixes in ((), tuple(self.fixes))):
            for row in self.rows:
                ledger.value(row, "memory")
                ledger.value(row, "flops")
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


class Ledger:
    """The published way of counting on one data set, with some corrections; it recomputes cells.

    A name is looked up in the corrections, then in the data set, then in the claim, and may use other names.
    """

    def __init__(self, claim: Claim, dataset: str, fixes: tuple[Fix, ...] = ()) -> None:
        self.fixes = fixes
        corrected = {name: value for fix in fixes for name, value in fix.names.items()}
        self.names: Mapping[str, Expression] = {**claim.names, **claim.datasets[dataset].names, **corrected}

    def value(self, row: Row, quantity: Quantity) -> float:
        """Return a recomputed cell: memory in MB, FLOPs as a number. Raises ValueError naming a formula that fails."""
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

        def look_up(node: Any) -> float:
            if node.id in within:
                raise ValueError(f"{node.id} is defined by itself ({' -> '.join([*within, node.id])})")
            if node.id not in self.names:
                raise ValueError(f"{expression!r} uses {node.id!r}, which is not among the claim's names")
            return self._evaluate(self.names[node.id], (*within, node.id))

        functions: dict[str, Callable[..., float]] = {"max": max, "min": min}
        try:
            value = SimpleEval(names=look_up, functions=functions).eval(expression)
        except (InvalidExpression, SyntaxError, TypeError, ArithmeticError) as error:
            raise ValueError(f"{expression!r} cannot be computed: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{expression!r} gives {value!r}, not a number")
        return float(value)


def claim_names() -> list[str]:
    """Return the names of the claims that come with clmem, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_claim(name: str) -> Claim:
    """Read a claim by name, or a claim file by its path. Raises UsageError saying what is wrong."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            f"there is no claim {name!r}; give the path of a .toml file, or a name: {nearest(name, claim_names())}"
        )
    try:
        return Claim.model_validate({"name": path.stem, **read_toml(path)})
    except ValidationError as error:
        raise UsageError(f"the claim file {path} is wrong: {spec_errors(error, list(Claim.model_fields))}") from error


def _known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        raise ValueError(f"it names a {what} {name!r} that does not exist: {nearest(name, known)}")
