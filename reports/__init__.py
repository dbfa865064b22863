"""From result files to what people read: grouping and checks (`load`, `cells`), tables, plots, markdown, terminal.

Nothing here measures anything or imports torch; matplotlib is imported only where a plot is drawn.
"""
