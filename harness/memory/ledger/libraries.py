"""What libraries take for themselves: cuBLAS, cuDNN and oneDNN. None of it is torch's, and none the method's."""

from __future__ import annotations

from clmem.harness.memory.ledger.log import AllocationLog, Block

CUBLAS, CUDNN = "cuBLAS workspace", "cuDNN workspace"
"""The names under which a log has it: cuBLAS's always, because it is known by its size, and cuDNN's in a prediction."""

LIBRARIES = {CUBLAS: "cuBLAS", CUDNN: "cuDNN"}


def library_of(log: AllocationLog, block: Block) -> str | None:
    """Return the library that took a block for itself; None for what torch, or a method, asked for.

    A convolution's workspace comes and goes within one operation, and what the convolution returns does not.
    """
    op = block.event.op
    if op in LIBRARIES:
        return LIBRARIES[op]
    if "convolution" not in op or block.dies is None:
        return None
    within = all(event.op == op for event in log.events[block.born : block.dies])
    return ("oneDNN" if log.marked_by is None else "cuDNN") if within else None
