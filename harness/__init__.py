"""Runs one method over one stream on one target, in fresh processes, and measures what it holds.

`spec` says what to run, `results` what came out; `streams` and `networks` are what is learnt, `execution` how a step
is carried out, `training` the loop, `worker` one process of a measurement, `measurement` all processes of one
run, `suite` many runs; `memory` counts the bytes.
"""
