"""What is benchmarked, and the command line that runs it.

`suites/` holds the suites that `clmem run` takes, `test_*.py` what `pytest --benchmark-only` measures in bytes,
`time/` what is measured in seconds (only with --clmem-time), `cli` the command `clmem`.
"""
