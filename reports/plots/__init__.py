"""The plots, drawn from matplotlib's defaults; matplotlib is imported only when one is drawn."""
