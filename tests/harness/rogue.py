"""A package of somebody else's methods, each of which goes wrong in its own way; installed by the tests."""

from __future__ import annotations

from pathlib import Path

MODULE = """
import os, signal, subprocess, time
import torch
from clmem.methods.sgd import SGD

class Hoarder(SGD):
    name = "rogue-hoarder"
    def after_step(self, batch, outputs):
        self.kept = torch.zeros(1000)

class Exhausted(SGD):
    name = "rogue-exhausted"
    def before_task(self, task):
        torch.empty(1 << 60, dtype=torch.uint8)

class Segfault(SGD):
    name = "rogue-segfault"
    def before_task(self, task):
        os.kill(os.getpid(), signal.SIGSEGV)

class Sleeper(SGD):
    name = "rogue-sleeper"
    def before_task(self, task):
        time.sleep(600)

class Talker(SGD):
    name = "rogue-talker"
    def before_task(self, task):
        print("hello from a method")
        os.write(1, b"and from below\\n")

class Mouthy(SGD):
    name = "rogue-mouthy"
    def before_task(self, task):
        raise RuntimeError("[/red] [enforce fail] \\ud800 \\x1b[31m" + "x" * 10_000_000)

class Forker(SGD):
    name = "rogue-forker"
    def before_task(self, task):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)

class Starter(SGD):
    name = "rogue-starter"
    def before_task(self, task):
        program = ["sleep", "600." + os.environ["CLMEM_PARENT"]]
        subprocess.Popen(program)
        subprocess.Popen(program, env={"PATH": os.environ["PATH"]}, start_new_session=True)

class Foreign(SGD):
    name = "rogue-foreign"
    def before_task(self, task):
        import numpy
        self.kept = torch.from_numpy(numpy.zeros(1000))
    def memory_roles(self):
        return {"method_state": [self.kept] if hasattr(self, "kept") else []}
"""


def install(folder: Path) -> None:
    """Lay out a distribution in `folder` as pip would; put `folder` on PYTHONPATH to use it."""
    (folder / "rogue_methods.py").write_text(MODULE)
    info = folder / "rogue-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue\nVersion: 1.0\n")
    names = ("Hoarder", "Exhausted", "Segfault", "Sleeper", "Talker", "Mouthy", "Forker", "Starter", "Foreign")
    lines = "".join(f"rogue-{name.lower()} = rogue_methods:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[clmem.methods]\n{lines}")
