"""What is downloaded is the official file or nothing, and what is looked for is found wherever paths may lead."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clmem.harness.errors import UsageError
from clmem.harness.streams import archives, idx, open_stream, prepare
from clmem.harness.streams.cache import prepared_folder

NAME = "split-fashion-mnist"
FILE = "t10k-labels-idx1-ubyte.gz"


@pytest.fixture
def served(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the data folder over HTTP, as the publisher's address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(data_root)))
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    monkeypatch.setattr(idx, "_URL", f"http://127.0.0.1:{server.server_port}/")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(data_root: str | Path | None) -> str:
    with pytest.raises(UsageError) as refused:
        prepare(NAME, data_root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.usefixtures("tiny_fashion", "served")
def test_downloaded_files_are_kept_where_they_are_looked_for(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    prepare(NAME, tmp_path / "downloads")
    names = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "downloads", data_root)]
    assert names[0] == names[1]


@pytest.mark.usefixtures("tiny_fashion", "served")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-4], r"the server sent \d+ of \d+ B"),
        (lambda content: content + b" ", "the server sent another file"),
        (lambda content: content[:-1] + b" ", "the server sent another file"),
    ],
    ids=["shorter", "longer", "other"],
)
def test_what_is_not_the_official_file_is_not_kept(
    data_root: Path, tmp_path: Path, change: object, reason: str
) -> None:
    file = data_root / FILE
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    target = tmp_path / "downloads"
    target.mkdir()
    with pytest.raises(
        UsageError, match=rf"{FILE} was not found and could not be downloaded .*\({reason}.*--data-root"
    ):
        prepare(NAME, target)
    assert [path.name for path in target.iterdir() if FILE in path.name] == []


@pytest.mark.usefixtures("tiny_fashion")
def test_a_server_that_sends_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within_a_minute: None
) -> None:
    monkeypatch.setattr(archives, "STALLED_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(idx, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert "could not be downloaded" in refusal(tmp_path)


@pytest.mark.usefixtures("tiny_fashion")
def test_missing_data_says_where_to_put_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refusal(empty)
    assert message.startswith("train-images-idx3-ubyte.gz was not found and could not be downloaded")
    assert f"into {empty}" in message
    assert "--data-root" in message


@pytest.mark.usefixtures("tiny_fashion")
def test_a_data_root_that_is_a_file_is_refused(data_root: Path) -> None:
    assert "is a file, but the data root must be the folder" in refusal(data_root / FILE)


@pytest.mark.usefixtures("tiny_fashion")
def test_a_data_root_that_cannot_be_a_path_is_refused() -> None:
    assert "NUL" in refusal("data\0root")
    assert "name another --data-root" in refusal("x" * 5000)


@pytest.mark.usefixtures("tiny_fashion")
def test_a_tilde_is_the_home_folder_wherever_a_folder_is_named(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLMEM_CACHE", "~/one")
    prepare(NAME, "~/data")
    assert prepared_folder(NAME).is_relative_to(tmp_path / "one")
    monkeypatch.setenv("CLMEM_CACHE", "~/other")
    monkeypatch.setenv("CLMEM_DATA_ROOT", "~/data")
    prepare(NAME)
    assert prepared_folder(NAME).is_relative_to(tmp_path / "other")


@pytest.mark.usefixtures("tiny_fashion")
def test_without_a_home_folder_only_the_cache_is_missing(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: object) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("pwd.getpwnam", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "CLMEM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    open_stream("split-fashion-mini", seed=0, batch_size=2, epochs=1)
    assert "name a folder for prepared data with the variable CLMEM_CACHE" in refusal(data_root)
    monkeypatch.setenv("CLMEM_CACHE", "~somebody/cache")
    assert "'~somebody/cache' is in a home folder that this system does not know" in refusal(data_root)
    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "cache"))
    assert "'~/data' names a home folder that this system does not know" in refusal("~/data")


def test_folders_need_not_have_names_in_utf8(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    data_root.rename(odd)
    monkeypatch.setenv("CLMEM_CACHE", str(odd / "cache"))
    prepare(NAME, odd)
    assert open_stream(NAME, seed=0, batch_size=2, epochs=1).has_data
