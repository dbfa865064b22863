"""Many processes: jobs and workers, the passes of a run, many runs, and a directory of their results."""
