"""The command `clmem`. Every command turns its options into specs, lets the harness run them, and shows the result.

Exit codes: 0 fine, 1 a check or a run failed, 2 bad usage, 130 interrupted. Errors are one sentence; `--debug` shows
the traceback. Torch is imported only by commands that run something.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from bench.progress import Bars
from harness.errors import ClmemError, UsageError, nearest
from harness.results import RunResult, save_result
from harness.spec import TARGETS, RunSpec, Scalar, Sources, spec_errors, weights_label
from harness.suite import Suite, load_suite, run_specs, run_suite

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
SUITES = Path(__file__).parent / "suites"
INTERRUPTED = "interrupted; the same command completes what is missing"
USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, which recent versions of typer carry inside

Streams = Annotated[list[str] | None, typer.Option("--stream", help="Stream (repeatable); see `clmem list streams`.")]
Network = Annotated[str | None, typer.Option(help="Network; see `clmem list networks`.")]
Width = Annotated[int | None, typer.Option(help="Channels of the network's first stage (64 is standard).")]
Target = Annotated[str | None, typer.Option(help="Where to measure; see `clmem list targets`.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per training batch.")]
BufferSize = Annotated[int | None, typer.Option(help="Replay slots in all.")]
ReplaySize = Annotated[int | None, typer.Option(help="Samples replayed per step.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A method's setting as key=value (repeatable).")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that holds the data sets.")]
Weights = Annotated[
    Path | None, typer.Option(help="Pretrained weights to start from (safetensors, or a saved state dict).")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes side by side (default: cores + 1, at most 4).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Measure, to the byte, what continual-learning methods hold in memory, beside what they deliver."""


@app.command()
def run(
    suite: Annotated[
        str, typer.Argument(help="A suite's name (see bench/suites) or the path of a suite file.")
    ] = "quick",
    methods: Annotated[list[str] | None, typer.Option("--method", help="Run only these methods (repeatable).")] = None,
    streams: Streams = None,
    network: Network = None,
    width: Width = None,
    weights: Weights = None,
    target: Target = None,
    batch_size: BatchSize = None,
    buffer_size: BufferSize = None,
    replay_size: ReplaySize = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, 0 to N-1.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as method.key=value (repeatable).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results directory (default: results/SUITE).")] = None,
    jobs: Jobs = None,
    data_root: DataRoot = None,
    retry: Annotated[bool, typer.Option(help="Run again what crashed or timed out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite and write its report. The same command completes what was interrupted."""
    path = Path(suite) if suite.endswith(".toml") else SUITES / f"{suite}.toml"
    if not path.exists():
        known = [file.stem for file in SUITES.glob("*.toml")]
        raise UsageError(f"there is no suite {suite!r}: {nearest(suite, known)}, or give the path of a .toml file")
    chosen = _override(
        load_suite(path),
        methods=methods,
        streams=streams,
        network=network,
        width=width,
        weights=None if weights is None else str(weights),
        target=target,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=replay_size,
        seeds=None if seeds is None else list(range(seeds)),
    )
    chosen = _override(chosen, config=_suite_settings(chosen, settings or []))
    specs = chosen.specs()
    sources = _sources(data_root, chosen.weights)
    from harness.checks import check_spec

    for spec in specs:
        check_spec(spec, sources)
    directory = out or Path("results") / path.stem
    console = Console(stderr=True)
    with Bars(console, len(specs)) as bars:
        results = run_suite(chosen, directory, jobs=jobs, sources=sources, retry=retry, watcher=bars)
    report_path = _write_report(directory, None)
    if as_json:
        print(json.dumps([result.model_dump(mode="json", by_alias=True) for result in results], indent=1))
    else:
        from reports.load import load_sections
        from reports.terminal import summary

        print(summary(load_sections(directory)))
        print(f"report: {report_path}")
    raise typer.Exit(0 if all(_is_sound(result) for result in results) else 1)


@app.command()
def measure(
    method: Annotated[str, typer.Argument(help="Method; see `clmem list methods`.")],
    stream: Annotated[str, typer.Option(help="Stream; see `clmem list streams`.")] = "synthetic-cifar10",
    network: Network = "resnet18",
    width: Width = 64,
    weights: Weights = None,
    target: Target = "cpu",
    batch_size: BatchSize = 32,
    buffer_size: BufferSize = 15,
    replay_size: Annotated[
        int | None, typer.Option(help="Samples replayed per step (default: the smaller of batch and buffer).")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Also save the result file into this directory.")] = None,
    jobs: Jobs = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Measure one method's memory: its peak, role by role, adding up to the byte."""
    spec = _spec(
        method=method,
        stream=stream,
        network=network,
        width=width,
        weights=None if weights is None else weights_label(str(weights)),
        target=target,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=min(batch_size or 1, buffer_size or 0) if replay_size is None else replay_size,
        config=dict(_setting(text) for text in settings or []),
        measure="memory",
    )
    sources = _sources(data_root, weights)
    from harness.checks import check_spec

    check_spec(spec, sources)
    if out is not None:
        _make_directory(out)
    results: list[RunResult] = []
    with Bars(Console(stderr=True), 1, announce=False) as bars:
        run_specs([spec], results.append, jobs=jobs, sources=sources, watcher=bars)
    result = results[0]
    if out is not None:
        save_result(out, result)
    if result.status != "ok":
        raise ClmemError(f"{method} on {stream}: {result.status}: {result.reason}")
    from reports.terminal import measure_json, measure_table

    print(json.dumps(measure_json(result), indent=1) if as_json else measure_table(result))
    raise typer.Exit(0 if _is_sound(result) else 1)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Argument(help="The file to write, for example trunk.safetensors.")],
    stream: Annotated[str, typer.Option(help="Stream whose classes are learnt all at once.")] = "split-fashion-mini",
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images instead, FOLDER/class/image, with train/ and val/ or without."),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Side to which the folder's images are scaled.")] = 32,
    network: Network = "resnet18",
    width: Width = 64,
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 10,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the batches.")] = 0,
    settings: Settings = None,
    data_root: DataRoot = None,
) -> None:
    """Train a network and save its weights, for --weights. The same command goes on after an interruption."""
    spec = _spec(
        method="joint",
        stream=stream,
        network=network,
        width=width,
        weights=None if weights is None else weights_label(str(weights)),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        config=dict(_setting(text) for text in settings or []),
        measure="accuracy",
    )
    _make_directory(out.parent)
    from harness.pretrain import pretrain as train_and_save

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("steps", total=None)
        done = train_and_save(
            spec,
            out,
            sources=_sources(data_root, weights),
            folder=images,
            image_size=image_size,
            report=lambda now, total: bar.update(line, description=now.phase, completed=now.steps, total=total),
        )
    went_on = f", going on after step {done.resumed_at[-1]}" if done.resumed_at else ""
    tested = "" if done.accuracy is None else f"; {100 * done.accuracy:.1f} % of the test samples right"
    print(f"{done.path}: {done.steps} steps{went_on}{tested}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A results directory.")],
    out: Annotated[Path | None, typer.Option(help="Where to write report.md and its plots (default: there).")] = None,
) -> None:
    """Write the markdown report of a results directory."""
    print(_write_report(directory, out))


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "streams", "networks", "targets", "suites"], typer.Argument(help="What to list.")
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from."""
    entries = _LISTS[what]()
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    column = max(map(len, entries)) + 2
    for name, description in entries.items():
        print(f"{name:{column}}{description}".rstrip())


def _list_methods() -> dict[str, str]:
    from harness.registry import method_class, method_names

    entries: dict[str, str] = {}
    for name in method_names():
        cls = method_class(name)
        entries[name] = (cls.__doc__ or "").strip().splitlines()[0]
        for preset, values in cls.presets.items():
            entries[f"{name}@{preset}"] = f"{name} with its own {', '.join(values)}"
    return entries


def _list_streams() -> dict[str, str]:
    from harness.streams import STREAMS

    return dict(STREAMS)


def _list_networks() -> dict[str, str]:
    from harness.networks import NETWORKS

    return NETWORKS


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _list_methods,
    "streams": _list_streams,
    "networks": _list_networks,
    "targets": lambda: TARGETS,
    "suites": lambda: {file.stem: load_suite(file).title for file in sorted(SUITES.glob("*.toml"))},
}


def _write_report(directory: Path, out: Path | None) -> Path:
    from reports.markdown import write_report

    console = Console(stderr=True)
    with console.status("writing the report") as status:
        return write_report(directory, out, progress=lambda caption: status.update(f"drawing: {caption}"))


def _spec(**fields: Any) -> RunSpec:
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(RunSpec.model_fields))) from error


def _sources(data_root: Path | None, weights: Path | str | None) -> Sources:
    return Sources(
        data_root=None if data_root is None else str(data_root), weights=None if weights is None else str(weights)
    )


def _override(suite: Suite, **fields: Any) -> Suite:
    changed = {key: value for key, value in fields.items() if value is not None}
    if "methods" in changed:
        for name in changed["methods"]:
            if name not in suite.methods:
                raise UsageError(f"the suite does not run {name!r}: {nearest(name, suite.methods)}")
        changed["config"] = {name: values for name, values in suite.config.items() if name in changed["methods"]}
    try:
        return Suite.model_validate({**suite.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(Suite.model_fields))) from error


def _setting(text: str) -> tuple[str, Scalar]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value, not {text!r}; write for example --set lr=0.01")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return key, value
    return key, parsed if isinstance(parsed, bool | int | float) else value


def _suite_settings(suite: Suite, settings: list[str]) -> dict[str, dict[str, Scalar]]:
    config = {name: dict(values) for name, values in suite.config.items()}
    for text in settings:
        key, value = _setting(text)
        method, dot, name = key.partition(".")
        if not dot or method not in suite.methods:
            raise UsageError(f"--set takes method.key=value with one of {suite.methods}, not {text!r}")
        config.setdefault(method, {})[name] = value
    return config


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}; choose another --out") from error


def _is_sound(result: RunResult) -> bool:
    return result.status == "ok" and not result.checks


def main() -> None:
    """Run the command line; print errors as one sentence."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False) or 0
        message = INTERRUPTED if code == 130 else ""  # typer may turn Ctrl-C into this code itself
    except USAGE_ERROR as error:
        message, code = error.format_message(), 2
    except ClmemError as error:
        if debug:
            raise
        message, code = str(error), 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if debug:
            raise
        message, code = f"{error.strerror}: {error.filename}" if error.filename else str(error), 2
    except (KeyboardInterrupt, typer.Abort):
        message, code = INTERRUPTED, 130
    if message:  # without arguments the help has been printed, which says enough
        print(f"clmem: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
