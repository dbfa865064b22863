"""A campaign against clmem: random kills, faults of the machine, and hostile inputs, night after night.

`python -m tests.campaign` runs it and prints what it found; pytest runs the same with `-m nightly`.
"""
