"""Accuracy and forgetting from accuracy matrices; the name of every metric says which definition it is.

`R[t][i]` is the accuracy (0..1) on task i after learning task t, None where it was not evaluated; T is the number of
tasks. A joint run learns all tasks at once, so its matrix has one row and only the accuracy is defined. A metric
that is not defined, or needs an entry that is missing, is absent from the result: it is never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from clmem.harness.results.record import Accuracy

Row = Sequence[float | None]
Matrix = Sequence[Row]


def accuracy(matrix: Matrix) -> float | None:
    """Return ACC = 1/T sum_i `R[T-1][i]`, the mean of the last row over the T tasks; of a joint run, of its only row.

    None when the run stopped before its last task or an entry is missing. Raises ValueError on a malformed matrix.
    """
    tasks = _tasks(matrix)
    if len(matrix) not in (1, tasks):
        return None
    return _mean(list(matrix[-1]))


def forgetting_max_previous(matrix: Matrix) -> float | None:
    """Return 1/(T-1) sum_{i<T-1} (max_{t<T-1} `R[t][i]` - `R[T-1][i]`) (Chaudhry et al., ECCV 2018).

    May be negative. The maximum runs over every evaluation before the last task, also those made before task i was
    learnt where the run has them; the evaluations from task i on are required. None for one task or a joint run.
    """
    if not _is_complete(matrix):
        return None
    last = len(matrix) - 1
    drops: list[float | None] = []
    for task in range(last):
        column = [row[task] for row in matrix[:last]]
        if any(value is None for value in column[task:]):
            return None
        highest = max(value for value in column if value is not None)
        drops.append(_difference(highest, matrix[last][task]))
    return _mean(drops)


def forgetting_first(matrix: Matrix) -> float | None:
    """Return 1/(T-1) sum_{i<T-1} (`R[i][i]` - `R[T-1][i]`): the drop since each task had just been learnt.

    May be negative. None for one task or a joint run.
    """
    if not _is_complete(matrix):
        return None
    last = len(matrix) - 1
    return _mean([_difference(matrix[task][task], matrix[last][task]) for task in range(last)])


def backward_transfer(matrix: Matrix) -> float | None:
    """Return BWT = 1/(T-1) sum_{i<T-1} (`R[T-1][i]` - `R[i][i]`) = -forgetting_first (Lopez-Paz & Ranzato, 2017)."""
    forgotten = forgetting_first(matrix)
    return None if forgotten is None else 0.0 - forgotten


def forward_transfer(matrix: Matrix, untrained: Row | None) -> float | None:
    """Return FWT = 1/(T-1) sum_{i>=1} (`R[i-1][i]` - untrained[i]) (Lopez-Paz & Ranzato, 2017).

    untrained: accuracy (0..1) of the same network on each task before any training. None for one task, a joint run,
    or a run that did not evaluate the tasks ahead.
    """
    if untrained is None or not _is_complete(matrix):
        return None
    if len(untrained) != len(matrix):
        raise ValueError(f"untrained has {len(untrained)} accuracies, expected one for each of {len(matrix)} tasks")
    return _mean([_difference(matrix[task - 1][task], untrained[task]) for task in range(1, len(matrix))])


def matrix_metrics(matrix: Matrix, untrained: Row | None = None) -> dict[str, float]:
    """Return every metric that is defined for one accuracy matrix, by name, without a scenario prefix."""
    values = {
        "accuracy": accuracy(matrix),
        "forgetting_max_previous": forgetting_max_previous(matrix),
        "forgetting_first": forgetting_first(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix, untrained),
    }
    return {name: value for name, value in values.items() if value is not None}


def scenario_metrics(run: Accuracy) -> dict[str, float]:
    """Return the metrics of one run with the scenario in front: `class_il_accuracy`, `task_il_forgetting_first`, ...

    A scenario for which the method is not defined contributes nothing. Raises ValueError on a malformed matrix.
    """
    metrics: dict[str, float] = {}
    scenarios = (
        ("class_il", run.class_il, run.untrained_class_il),
        ("task_il", run.task_il, run.untrained_task_il),
    )
    for scenario, matrix, untrained in scenarios:
        if matrix is not None:
            values = matrix_metrics(matrix, untrained)
            metrics.update({f"{scenario}_{name}": value for name, value in values.items()})
    return metrics


def _tasks(matrix: Matrix) -> int:
    """Return T after checking the shape and the range; a percentage given as 0..100 must not pass silently."""
    if not matrix or not matrix[0]:
        raise ValueError("the accuracy matrix is empty, expected one row per learnt task and one column per task")
    tasks = len(matrix[0])
    if any(len(row) != tasks for row in matrix) or len(matrix) > tasks:
        lengths = [len(row) for row in matrix]
        raise ValueError(
            f"the accuracy matrix has rows of {lengths} entries, expected at most T rows of T entries each"
        )
    for row in matrix:
        for value in row:
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"the accuracy matrix holds {value}, expected a fraction between 0 and 1")
    return tasks


def _is_complete(matrix: Matrix) -> bool:
    """Tell whether every one of two or more tasks was learnt in turn, which all but the accuracy need."""
    tasks = _tasks(matrix)
    return tasks > 1 and len(matrix) == tasks


def _difference(minuend: float | None, subtrahend: float | None) -> float | None:
    return None if minuend is None or subtrahend is None else minuend - subtrahend


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
