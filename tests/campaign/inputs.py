"""Reads hostile files in this process: results, checkpoints, weights, archives, images, suites and claims.

Every reader may refuse with one sentence, or understand. It must not raise anything else, write outside of its folder,
run code that a file brings, or take more than `SECONDS`.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import signal
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.checkpoint import Checkpoint, Course, UnusableCheckpointError
from clmem.harness.networks.registry import build_network
from clmem.harness.networks.weights import load_weights
from clmem.harness.results.record import load_result
from clmem.harness.runs.directory import run_suite
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.suite import load_suite
from clmem.harness.streams.folder import open_folder
from clmem.reports.claims.claim import FOLDER as CLAIMS
from clmem.reports.claims.claim import load_claim
from clmem.reports.report import write_report
from tests.campaign.faults import SUITE
from tests.campaign.mutations import damaged_bytes, damaged_json, damaged_toml
from tests.campaign.samples import Malicious, bomb, sound_results
from tests.campaign.tally import Tally

SECONDS = 10
"""Of processor time that a reader may take; more is a hang."""

WAITING_SECONDS = 60
"""Of any time, because whoever waits takes no processor time; a busy machine may take a few for one."""

Reader = Callable[[], object]


class _TimeIsOver(BaseException):
    """Ends a search at once: hypothesis catches what is an Exception, and goes on."""


class Inputs:
    """One night's hostile inputs. examples: of each kind. folder: everything happens below it."""

    def __init__(self, tally: Tally, folder: Path, examples: int, number: int, until: float) -> None:
        self.tally, self.folder, self.examples, self.number, self.until = tally, folder, examples, number, until
        self._attempts: list[tuple[str, st.SearchStrategy[Any], Callable[[Any], object]]] = []
        self.inside = folder / "inside"
        self.canary = folder / "executed"
        self.inside.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Try every kind of input until the time is over, each for an equal share of what is left."""
        kinds = (
            *(self.results, self.reports, self.manifests, self.suites, self.claims, self.checkpoints, self.weights),
            *(self.pickles, self.images, self.archives),
        )
        for kind in kinds:
            kind()
        for number, (name, strategy, use) in enumerate(self._attempts):
            now = time.monotonic()
            self._try(name, strategy, use, now + (self.until - now) / (len(self._attempts) - number))

    def _plan(self, name: str, strategy: st.SearchStrategy[Any], use: Callable[[Any], object]) -> None:
        self._attempts.append((name, strategy, use))

    def _try(self, name: str, strategy: st.SearchStrategy[Any], use: Callable[[Any], object], end: float) -> None:
        """Give every drawn input to its reader; the smallest one that a reader cannot stand is noted."""
        failures: list[BaseException] = []

        @seed(self.number)
        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(strategy)
        def each(drawn: Any) -> None:
            if time.monotonic() > end:
                raise _TimeIsOver
            self.tally.inputs += 1
            try:
                _judge(use, drawn)
            except BaseException as error:
                failures.append(error)
                raise

        try:
            each()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            for failure in failures[-1:]:
                kind = self.tally.hangs if isinstance(failure, TimeoutError) else self.tally.tracebacks
                note = " ".join(getattr(error, "__notes__", ()))
                kind.append(f"{name}: {type(failure).__name__}: {str(failure)[:300]} {note[:500]}")
        stray = {path.name for path in self.folder.iterdir()} - {"inside", "executed"}
        if stray:
            self.tally.outside.append(f"{name} left {', '.join(sorted(stray))}")
        if self.canary.exists():
            self.tally.executed.append(name)
            self.canary.unlink()

    def results(self) -> None:
        """Read damaged result files."""
        sound = sound_results()

        def use(drawn: Any) -> None:
            path = (
                self.inside
                / f"{drawn['run_id'] if isinstance(drawn, dict) and _plain(drawn.get('run_id')) else 'x'}.json"
            )
            path.write_text(json.dumps(drawn))
            try:
                found = load_result(path)
            finally:
                path.unlink()
            peaks = {one["run_id"]: _peaks(one) for one in sound}
            if _peaks(found.model_dump(mode="json", by_alias=True)) != peaks.get(found.run_id):
                raise AssertionError("another peak was believed")

        self._plan("results", st.one_of([damaged_json(one) for one in sound]), use)
        whole = json.dumps(sound[0]).encode()
        path = self.inside / f"{sound[0]['run_id']}.json"
        self._plan("bytes of results", damaged_bytes(whole), lambda drawn: _written(path, drawn, load_result))

    def reports(self) -> None:
        """Report on damaged results; what is written stays in its folder and is escaped."""
        sound = sound_results()

        def use(drawn: Any) -> None:
            out = self.inside / "reported"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            for one in (drawn, sound[1]):
                name = one.get("run_id") if isinstance(one, dict) else None
                (out / f"{name if _plain(name) else 'a--b'}.json").write_text(json.dumps(one))
            page = write_report(out, plots=False).read_text(encoding="utf-8")
            for raw in ("<script", "](javascript:", "\x1b", "![x](http"):
                if raw in page:
                    raise AssertionError(f"the page holds {raw!r}")
            if len(page) > 2_000_000:
                raise AssertionError(f"the page has {len(page):,} characters")

        self._plan("reports", damaged_json(sound[0]), use)

    def manifests(self) -> None:
        """Meet a damaged manifest in a results directory."""
        suite = self.inside / "suite.toml"
        suite.write_text(SUITE)
        chosen = load_suite(suite)
        sound = chosen.model_dump(mode="json", exclude={"timeout_s"})
        sound["title"] = "another suite"

        def use(drawn: Any) -> None:
            out = self.inside / "suite-out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            (out / "suite.json").write_text(json.dumps(drawn))
            if isinstance(drawn, dict) and drawn.get("title") == chosen.title:
                return
            run_suite(chosen, out)
            raise AssertionError("a directory of another suite was filled")

        self._plan("manifests", damaged_json(sound), use)

    def suites(self) -> None:
        """Read damaged suite files."""
        path = self.inside / "suite.toml"
        for source in sorted((Path(__file__).parents[2] / "bench" / "suites").glob("*.toml"))[:3]:
            text = source.read_text(encoding="utf-8")
            self._plan(
                f"suite {source.stem}",
                damaged_toml(text),
                lambda drawn: _written(path, _encoded(drawn), lambda file: load_suite(file).specs()),
            )

    def claims(self) -> None:
        """Read damaged claim files."""
        path = self.inside / "claim.toml"
        for source in sorted(CLAIMS.glob("*.toml")):
            text = source.read_text(encoding="utf-8")
            self._plan(
                f"claim {source.stem}",
                damaged_toml(text),
                lambda drawn: _written(path, _encoded(drawn), lambda file: load_claim(str(file))),
            )

    def checkpoints(self) -> None:
        """Resume from damaged and from forged checkpoints."""
        path = self.inside / "checkpoint"
        run = _run()
        Checkpoint(path, {}, every_s=0).save_if_due(run, Course(steps=3))
        whole = path.read_bytes()

        def resumed(file: Path) -> None:
            course = Checkpoint(file, {}).restore(run)
            if course.steps and file.read_bytes() != whole:
                raise AssertionError("a damaged checkpoint was resumed")

        self._plan("checkpoints", damaged_bytes(whole), lambda drawn: _written(path, drawn, resumed))

        def forged(drawn: Any) -> None:
            import hashlib

            buffer = io.BytesIO()
            torch.save({**drawn, "key": Checkpoint(path, {})._key_of(run)}, buffer)
            path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
            try:
                Checkpoint(path, {}).restore(_run())
            except UnusableCheckpointError:
                return

        values = st.sampled_from([None, 1, "x", [], {}, [1, 2, 3], {"task": -1}, {"steps": 10**20}, "{}"])
        parts = ("method", "network", "trunk", "rng", "execution", "fingerprint", "course", "resumed_at")
        self._plan("forged checkpoints", st.dictionaries(st.sampled_from(parts), values), forged)

    def weights(self) -> None:
        """Load damaged weights."""
        network = build_network("resnet18", num_classes=10, width=1, seed=0)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        for suffix, whole in (("safetensors", save(network.state_dict())), ("pt", buffer.getvalue())):
            path = self.inside / f"trunk.{suffix}"
            self._plan(
                f"weights as {suffix}",
                st.one_of(damaged_bytes(whole), damaged_bytes(whole[:2000]).map(partial(_before, whole[2000:]))),
                lambda drawn, path=path: _written(path, drawn, lambda file: load_weights(network, file)),  # type: ignore[misc]
            )

    def pickles(self) -> None:
        """Load pickles that run code, under every name that weights, checkpoints and data sets have."""
        network = build_network("resnet18", num_classes=10, width=1, seed=0)
        forms: list[bytes] = [pickle.dumps(Malicious(self.canary), protocol) for protocol in range(6)]
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save({"state_dict": Malicious(self.canary)}, buffer, _use_new_zipfile_serialization=zipped)
            forms.append(buffer.getvalue())
        for suffix in ("pt", "pth", "safetensors", "tar", "ckpt"):
            path = self.inside / f"weights.{suffix}"
            self._plan(
                f"pickles as {suffix}",
                st.sampled_from(forms),
                lambda drawn, path=path: _written(path, drawn, lambda file: load_weights(network, file)),  # type: ignore[misc]
            )
        checkpoint = self.inside / "checkpoint"
        run = _run()
        self._plan(
            "pickles as checkpoints",
            st.sampled_from(forms),
            lambda drawn: _written(checkpoint, drawn, lambda file: Checkpoint(file, {}).restore(run)),
        )

    def images(self) -> None:
        """Open folders with damaged images, and with other kinds of file under an image's name."""
        folder = self.inside / "images"
        picture = Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3))
        wholes = []
        for kind in ("PNG", "JPEG", "BMP", "PPM", "GIF", "TIFF", "EPS", "WEBP"):
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            wholes.append(buffer.getvalue())
        wholes += [b"%!PS\n(canary) (w) file closefile showpage", bomb(), b"P6 99999 99999 255\n", b"", b"GIF89a"]

        def use(drawn: bytes) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            for name in ("a", "b"):
                (folder / name).mkdir(parents=True)
                for number in range(10):
                    content = drawn if (name, number) == ("a", 0) else wholes[0]
                    (folder / name / f"{number}.png").write_bytes(content)
            open_folder(folder, 32)

        self._plan(
            "images", st.sampled_from(wholes).flatmap(lambda one: st.one_of(st.just(one), damaged_bytes(one))), use
        )

    def archives(self) -> None:
        """Prepare data sets from damaged archives and from other files under their names."""
        from clmem.harness.streams import cifar, idx, tinyimagenet

        bomb = gzip.compress(bytes(200 * 2**20), 9)
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w:gz") as archive:
            content = pickle.dumps(Malicious(self.canary))
            for name in ("cifar-10-batches-py/data_batch_1", "../../escaped", "/escaped"):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("tiny-imagenet-200/wnids.txt", "n0\n" * 200)
            packed.writestr("../../escaped", "x")
        header = struct.pack(">IIII", 0x00000803, 60000, 28, 28)
        forms = [bomb, gzip.compress(header), tar.getvalue(), zipped.getvalue(), header, b"", b"\x1f\x8b"]
        sources: dict[str, Callable[[Path], object]] = {
            "train-images-idx3-ubyte.gz": lambda out: idx.convert(out, idx.FASHION_MNIST, self.inside),
            "train-images-idx3-ubyte": lambda out: idx.convert(out, idx.FASHION_MNIST, self.inside),
            "cifar-10-python.tar.gz": lambda out: cifar.convert(out, cifar.CIFAR10, self.inside),
            "tiny-imagenet-200.zip": lambda out: tinyimagenet.convert(out, tinyimagenet.TINY_IMAGENET, self.inside),
        }
        for name, convert in sources.items():

            def use(drawn: bytes, name: str = name, convert: Callable[[Path], object] = convert) -> None:
                out = self.inside / "converted"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                _written(self.inside / name, drawn, lambda file: convert(out))
                raise AssertionError("an archive that is not the official one was taken")

            small = [form for form in forms if len(form) < 10_000]
            strategy = st.one_of(st.sampled_from(forms), st.sampled_from(small).flatmap(damaged_bytes))
            self._plan(f"archive {name}", strategy, use)


def _judge(use: Callable[[Any], object], drawn: Any) -> None:
    """Let a reader read what was drawn; it may refuse with one sentence."""
    with _patience():
        try:
            use(drawn)
        except ClmemError as error:
            if "\n" in str(error) or len(str(error)) > 4000:
                raise AssertionError(f"the error is no sentence: {str(error)[:200]!r}") from error


def _peaks(result: dict[str, Any]) -> list[int | None]:
    return [result[part] and result[part]["peak_bytes"] for part in ("allocator", "footprint")]


def _plain(name: object) -> bool:
    """Say whether a name can be that of a file at all."""
    return isinstance(name, str) and 0 < len(name) < 200 and not set(name) & set("/\0\ud800") and name[0] != "."


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _before(end: bytes, start: bytes) -> bytes:
    return start + end


def _written(path: Path, content: bytes, use: Callable[[Path], object]) -> None:
    path.write_bytes(content)
    try:
        use(path)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _patience() -> Iterator[None]:
    """Raise TimeoutError in whatever takes too much processor time, or waits too long."""

    def over(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of a processor, or {WAITING_SECONDS} s of waiting")

    timers = (
        (signal.SIGVTALRM, signal.ITIMER_VIRTUAL, SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, WAITING_SECONDS),
    )
    before = {number: signal.signal(number, over) for number, _, _ in timers}
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, timer, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _run() -> Run:
    return build(RunSpec(method="er", width=1, batch_size=8, buffer_size=4, replay_size=4), Unwatched())
