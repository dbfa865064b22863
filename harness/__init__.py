"""Runs one method over one stream on one target, in fresh processes, and measures what it holds.

`specs` says what to run and `results` what came out. `streams` and `networks` are what is learnt, `techniques` and
`execution` how a step is taken, `learning` the loop. `memory` counts the bytes, `runs` starts the processes, and
`answers` goes beyond one run.
"""
