"""What to run: one run, a suite of runs, the techniques, targets and budgets that they name. No torch."""
