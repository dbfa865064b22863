"""Measures, to the byte, what continual-learning methods hold in memory, beside what they deliver."""
