"""The commands of `clmem`, one file each. `bench/cli.py` registers them; torch is imported only inside what runs it."""
