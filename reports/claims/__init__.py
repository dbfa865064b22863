"""Published claims and their check: what was printed, how it comes about, what it leaves out, and what is measured.

A claim is a TOML file here (or anywhere: `clmem claims FILE`); the code knows none by name.
"""
