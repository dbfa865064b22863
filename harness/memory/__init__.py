"""Counts bytes: the allocator's log joined with role records gives a ledger that sums to the peak exactly.

`ledger` is plain data and arithmetic, `watching` reads torch's log and records roles, `predicting` makes a log without
running anything, and `system` reads what the operating system, the driver and the board say.
"""
