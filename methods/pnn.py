"""Progressive Neural Networks (PNN): a network per task, each of which listens to all before it.

Rusu et al., "Progressive Neural Networks", arXiv 1606.04671, 2016, Eq. 2.

Column t, at layer i:

    h_i = ReLU(W_i h_{i-1} + U_i ReLU(V_i alpha_i h_{i-1}^{<t} + b_i))      loss = CE(f_t(x), y)

Only column t learns during task t. W: its own ResNet, drawn anew. h^{<t}: the outputs of all older columns, laterals
included, which run without gradients, in eval mode and never change. V: a 1x1 convolution from all of their channels to
those of one. U: a layer like the one of the column that it feeds. Laterals leave layers 1, 2 and 3 and, averaged over
pixels, 4 for the head. A sample is predicted by its task's column, so the task must be known.

Bytes: every column after the first holds nearly two networks (U is all of one but its stem and layer1), and V grows
with the columns that it reads: 1.33 MiB for each pair of columns at width 64. Old columns cost activations too: V
learns from their outputs of layers 1 to 3, held for the backward: 448 KiB per old column and image of 32 x 32.

Differs from the paper / the released code in (none was released; mammoth's is the field's reference) in:
- one body per column. mammoth copies every older body into every column: T (T + 1) / 2 bodies.
- older columns are what they were when they learnt. In mammoth they lack their own laterals, normalise by the current
  batch (their copies' statistics drift) and use the new column's first batch norm.
- the lateral is added before the ReLU, as in the paper; mammoth adds two ReLUs' outputs.
- alpha is one number per lateral, as in the paper; mammoth has one per channel and pixel. It is folded into V. The
  batch norms in U leave it little to say: they undo every scale but that of V h next to b.
- U is a whole layer of two blocks, batch norms included, where the paper has one matrix.
- the stem's output feeds no lateral: the paper has one from every layer to the next.
- all columns have the same width, and a head of all classes, of which `head=task_il` trains the task's slice (the
  paper: one head per task; mammoth: cross-entropy over all classes, which is `class_il`).
- pretrained weights, where there are any, are those of the first column; all others are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from clmem.methods.base import Batch, Method, MethodContext, Network, Scenario, Step, Task, Term
from clmem.methods.parts.columns import Column, check_layers


class PNN(Method):
    """Progressive Neural Networks: adds a new column for each task and keeps the older columns unchanged."""

    name = "pnn"
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"task-il"})
    grows_with_tasks = "begun"

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(0.03, gt=0, description="learning rate of SGD (the mammoth framework's)")
        head: Literal["class_il", "task_il"] = Field(
            "task_il",
            description="cross-entropy over all classes (class_il) or those of the current task "
            "(task_il; paper: one head per task)",
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        check_layers(context.network)
        self.columns: list[Network] = [context.network]

    def before_task(self, task: Task) -> None:
        """Add the task's column, unless it is the first or the task begins once more."""
        if task.index == len(self.columns):
            self._add_column(int(self.context.rng.integers(2**63)))

    def _add_column(self, seed: int) -> None:
        number = len(self.columns)
        self.columns[-1].eval()
        body, adapter = (self.context.new_network(2 * number + part) for part in range(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Column(self.columns, body, adapter).to(self.context.device)
        self.columns.append(self.network)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """One term, one optimizer step."""
        return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]

    def predict(self, images: Tensor, task_id: int | None = None) -> Tensor:
        """Return the logits of the task's column; of the newest for a task that has none yet."""
        if task_id is None:
            raise ValueError("PNN has a column per task and cannot tell tasks apart: give predict() the task_id")
        column = self.columns[min(task_id, len(self.columns) - 1)]
        return self.context.runner.forward(images, network=column).logits

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Method state: all columns but the newest, which is the network."""
        return {"method_state": [t for column in self.columns[:-1] for t in (*column.parameters(), *column.buffers())]}

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors of every column."""
        return {"columns": [dict(column.state_dict()) for column in self.columns]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make as many columns as there were, and fill them. Draws nothing from the method's generator."""
        for number, tensors in enumerate(state["columns"]):
            if number == len(self.columns):
                self._add_column(seed=0)
            self.columns[number].load_state_dict(tensors)
