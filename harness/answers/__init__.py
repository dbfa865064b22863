"""Questions beyond one run: what it would hold, what fits into a budget, and what its layers learn."""
