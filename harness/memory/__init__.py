"""Counts bytes: the allocator's log joined with role records gives a ledger that sums to the peak exactly.

`log` and `ledger` are plain data and arithmetic, `cpu` reads torch's log, `observer` records roles,
`process` reads what the operating system says.
"""
