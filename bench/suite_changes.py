"""What the options of `clmem run` change in a suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmem.bench.options import SUITES, read_setting, suite_names
from clmem.harness.errors import UsageError, nearest
from clmem.harness.files import expand
from clmem.harness.text import clean, some

if TYPE_CHECKING:
    from clmem.harness.specs.run import Scalar
    from clmem.harness.specs.suite import Suite, Variation

USUAL = "quick"
"""The suite that is run when none is named."""


def suite_file(suite: str) -> Path:
    """Return the path of a suite that is named, or given by its path. Raises UsageError for a name that is none."""
    if suite.endswith(".toml") or "/" in suite:
        return expand(suite)
    known = suite_names()
    if suite not in known:
        raise UsageError(
            f"there is no suite {clean(suite, 80)!r}; give the path of a .toml file, or a name: {nearest(suite, known)}"
        )
    return SUITES / f"{suite}.toml"


def load(path: Path) -> Suite:
    """Return the suite of a file. Raises UsageError naming the file and what is wrong in it."""
    from clmem.harness.specs.suite import load_suite

    return load_suite(path)


def which(suite: Suite, methods: list[str]) -> str:
    """Say which suite is run when none is named, and what of it."""
    if methods:
        return f"clmem: no suite is named, so {clean(some(methods))} run under the conditions of the suite {USUAL}"
    return f"clmem: no suite is named, so this runs {USUAL}: {suite.title}"


def only_methods(suite: Suite, methods: list[str]) -> Suite:
    """Return the suite with some of its methods alone. Raises UsageError for a method that it does not run."""
    for name in methods:
        if name not in suite.methods:
            shown = clean(name, 80)
            raise UsageError(
                f"the suite does not run {shown!r}: {nearest(name, suite.methods)}; --add-method {shown} adds a method"
            )

    def variation(varied: Variation) -> Variation:
        chosen = None if varied.methods is None else [name for name in varied.methods if name in methods]
        return varied.model_copy(update={"methods": chosen, "config": _of(varied.config, methods)})

    changed = {"config": _of(suite.config, methods), "vary": [variation(varied) for varied in suite.vary]}
    return _valid(suite, {"methods": methods, **changed})


def with_methods(suite: Suite, methods: list[str]) -> Suite:
    """Return the suite with further methods. Raises UsageError for one that it runs already.

    A suite that varies none but methods that it names runs the others under its own conditions.
    """
    from clmem.harness.specs.suite import Variation

    if not methods:
        return suite
    for name in methods:
        if name in suite.methods:
            raise UsageError(f"the suite runs {clean(name, 80)!r} already; leave it out of --add-method")
    all_named = all(varied.methods is not None for varied in suite.vary)
    vary = [*suite.vary, Variation(methods=methods)] if all_named else suite.vary
    return _valid(suite, {"methods": [*suite.methods, *methods], "vary": vary})


def override(suite: Suite, changed: Mapping[str, Any]) -> Suite:
    """Return the suite under other conditions. Raises UsageError for a condition that it varies by itself."""
    vary = suite.vary
    if "seeds" in changed:
        vary = [varied.model_copy(update={"seeds": None}) for varied in vary]
    for name in set(changed) & {name for varied in suite.vary for name in varied.conditions()}:
        raise UsageError(f"the suite varies {name} by itself, so it cannot be set to {changed[name]} for all of it")
    return _valid(suite, {**changed, "vary": vary})


def with_settings(suite: Suite, settings: list[str]) -> Suite:
    """Return the suite with settings of its methods, each as method.key=value. Raises UsageError."""
    config = {name: dict(values) for name, values in suite.config.items()}
    for text in settings:
        key, value = read_setting(text)
        method, dot, name = key.partition(".")
        if not dot or method not in suite.methods:
            raise UsageError(
                f"--set takes method.key=value, not {clean(text, 80)!r}; the methods are {some(suite.methods)}"
            )
        config.setdefault(method, {})[name] = value
    return _valid(suite, {"config": config})


def _valid(suite: Suite, changed: Mapping[str, Any]) -> Suite:
    from pydantic import ValidationError

    from clmem.harness.specs.run import spec_errors
    from clmem.harness.specs.suite import Suite

    try:
        return Suite.model_validate({**suite.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(Suite.model_fields))) from error


def _of(config: Mapping[str, dict[str, Scalar]], methods: list[str]) -> dict[str, dict[str, Scalar]]:
    return {name: values for name, values in config.items() if name in methods}
