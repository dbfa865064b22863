"""One file per continual-learning algorithm, reading like its paper.

The contract is in `clmem.methods.base`; pieces that several algorithms share are in `clmem.methods.parts`.
"""
