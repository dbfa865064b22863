"""The commands of `clmem`, one file each. `bench/app.py` registers them; torch is imported only inside what runs it."""
