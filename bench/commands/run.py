"""`clmem run`: a suite, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clmem.bench.commands.report import write_and_show
from clmem.bench.groups import SuiteOptions, make_sources
from clmem.bench.options import DATA_ROOT, JOBS, OTHERS, SUITES, AsJson, is_sound, path_option, read_setting
from clmem.harness.errors import UsageError, nearest
from clmem.harness.files import expand
from clmem.harness.text import clean, some

if TYPE_CHECKING:
    from clmem.harness.runs.directory import Reuse
    from clmem.harness.specs.run import Scalar
    from clmem.harness.specs.suite import Suite, Variation

MOST_SEEDS = 10_000


def run(
    options: SuiteOptions,
    suite: Annotated[
        str, typer.Argument(help="A suite's name (see `clmem list suites`) or the path of a suite file.")
    ] = "quick",
    methods: Annotated[list[str] | None, typer.Option("--method", help="Run only these methods (repeatable).")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, 0 to N-1.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as method.key=value (repeatable).")
    ] = None,
    out: Annotated[Path | None, path_option(help="Results directory (default: results/SUITE).")] = None,
    jobs: Annotated[int | None, JOBS] = None,
    others: Annotated[int | None, OTHERS] = None,
    data_root: Annotated[Path | None, DATA_ROOT] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what crashed or timed out.")] = False,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep results that older code made; they are measured again otherwise.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again, whatever is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite and write its report. The same command completes what was interrupted."""
    if keep_old and fresh:
        raise UsageError("--keep-old keeps every result that is there and --fresh none; give one of them")
    from clmem.harness.learning.registry import check_method
    from clmem.harness.specs.suite import load_suite

    path = _suite_file(suite)
    changed = options.changed() | ({} if seeds is None else {"seeds": list(range(seeds))})
    chosen = _override(load_suite(path), changed | ({} if methods is None else {"methods": methods}))
    chosen = _override(chosen, {"config": _suite_settings(chosen, settings or [])})
    for method in chosen.methods:
        check_method(method)
    specs = chosen.specs()
    sources = make_sources(data_root, chosen.weights, others)
    from rich.console import Console

    from clmem.bench.progress import Bars
    from clmem.harness.runs.checks import check_spec
    from clmem.harness.runs.directory import run_suite

    for spec in specs:
        check_spec(spec, sources)
    directory = out or Path("results") / path.stem
    reuse: Reuse = "all" if keep_old else "none" if fresh else "unchanged"
    console = Console(stderr=True)
    with Bars(console, len(specs)) as bars:
        results = run_suite(chosen, directory, jobs=jobs, sources=sources, retry=retry, reuse=reuse, watcher=bars)
    report_path = write_and_show(directory, None)
    if as_json:
        print(json.dumps([result.model_dump(mode="json", by_alias=True) for result in results], indent=1))
    else:
        from clmem.reports.data.load import load_sections
        from clmem.reports.terminal.runs import summary

        print(summary(load_sections(directory)))
        print(f"report: {report_path}")
    raise typer.Exit(0 if all(is_sound(result) for result in results) else 1)


def _suite_file(suite: str) -> Path:
    """Return the path of a suite that is named, or given by its path. Raises UsageError for a name that is none."""
    if suite.endswith(".toml") or "/" in suite:
        return expand(suite)
    known = [file.stem for file in SUITES.glob("*.toml")]
    if suite not in known:
        raise UsageError(
            f"there is no suite {clean(suite, 80)!r}; give the path of a .toml file, or a name: {nearest(suite, known)}"
        )
    return SUITES / f"{suite}.toml"


def _override(suite: Suite, changed: dict[str, Any]) -> Suite:
    from pydantic import ValidationError

    from clmem.harness.specs.run import spec_errors
    from clmem.harness.specs.suite import Suite

    if "methods" in changed:
        for name in changed["methods"]:
            if name not in suite.methods:
                raise UsageError(f"the suite does not run {clean(name, 80)!r}: {nearest(name, suite.methods)}")
        changed["config"] = _only(suite.config, changed["methods"])
        changed["vary"] = [_vary_only(variation, changed["methods"]) for variation in suite.vary]
    if "seeds" in changed:
        changed["vary"] = [one.model_copy(update={"seeds": None}) for one in changed.get("vary", suite.vary)]
    for name in set(changed) & {name for variation in suite.vary for name in variation.conditions()}:
        raise UsageError(f"the suite varies {name} by itself, so it cannot be set to {changed[name]} for all of it")
    try:
        return Suite.model_validate({**suite.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(Suite.model_fields))) from error


def _vary_only(variation: Variation, methods: list[str]) -> Variation:
    chosen = None if variation.methods is None else [name for name in variation.methods if name in methods]
    return variation.model_copy(update={"methods": chosen, "config": _only(variation.config, methods)})


def _only(config: dict[str, dict[str, Scalar]], methods: list[str]) -> dict[str, dict[str, Scalar]]:
    return {name: values for name, values in config.items() if name in methods}


def _suite_settings(suite: Suite, settings: list[str]) -> dict[str, dict[str, Scalar]]:
    config = {name: dict(values) for name, values in suite.config.items()}
    for text in settings:
        key, value = read_setting(text)
        method, dot, name = key.partition(".")
        if not dot or method not in suite.methods:
            raise UsageError(
                f"--set takes method.key=value, not {clean(text, 80)!r}; the methods are {some(suite.methods)}"
            )
        config.setdefault(method, {})[name] = value
    return config
