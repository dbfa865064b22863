"""The one place where methods are looked up by name: the files of `methods/`, and other packages' entry points.

A file `methods/my_idea.py` holds the class whose `name` is `my-idea`. Another package adds its own with an entry point
in the group `clmem.methods` (`harness/plugins.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from clmem.harness.errors import UsageError, blame, nearest
from clmem.harness.learning.descriptions import own_description
from clmem.harness.networks.registry import architecture, network_digests
from clmem.harness.plugins import Plugins
from clmem.harness.results.record import described
from clmem.harness.results.source import method_digest, own_methods
from clmem.harness.specs.run import RunSpec, spec_errors
from clmem.harness.specs.techniques import LEAN
from clmem.harness.text import clean

if TYPE_CHECKING:
    from clmem.harness.networks.staged import Stages
    from clmem.methods.base import Method

LONGEST_HEADLINE = 200
"""Characters of a method's description in a list."""


def method_names() -> list[str]:
    """Return the names of every method that is installed, sorted, also of those that cannot be used."""
    return METHODS.names()


def method_class(name: str) -> type[Method]:
    """Return the class of a method; `name` may carry a preset.

    Raises UsageError for a name or preset that does not exist, for a name that two methods share, and for a method that
    cannot be imported or is no method.
    """
    name, at, preset = name.partition("@")
    found = _checked(*METHODS.find(name), name)
    if at:
        _check_preset(name, preset, found.presets)
    return found


def _check_preset(name: str, preset: str, presets: Mapping[str, object]) -> None:
    if preset not in presets:
        known = f"its presets are {', '.join(map(repr, presets))}" if presets else "it has none"
        raise UsageError(f"method {name!r} has no preset {clean(preset, 80)!r}: {known}")


def source_digests(spec: RunSpec) -> dict[str, str]:
    """Return digests of the source that a run's numbers depend on, beside that of what measures.

    They are `method`, and `network` where another package brings it. Raises UsageError for what cannot be imported.
    """
    return {"method": method_digest(method_class(spec.method)), **network_digests(spec.network)}


def check_method(name: str) -> None:
    """Raise UsageError for a method or a preset that does not exist, without importing a method or torch.

    What only importing tells, such as the presets of another package's method, is left to `method_class`.
    """
    name, at, preset = name.partition("@")
    entry = METHODS.entry(name)
    if entry is None and at:
        own = own_description(name)
        if own is not None:
            _check_preset(name, preset, own.presets)


def method_entries() -> dict[str, str]:
    """Return one line about every method and preset, by name; a method that cannot be used says why.

    Our methods are read and not imported. Those of other packages are imported, because only that tells whether they
    work.
    """
    entries: dict[str, str] = {}
    for name in method_names():
        try:
            headline, presets = _described(name)
        except UsageError as error:  # somebody's plug-in; the others can be used all the same
            entries[clean(name, 80)] = f"cannot be used: {error}"
            continue
        entries[name] = clean(headline, LONGEST_HEADLINE) or "(not described)"
        for preset, values in presets.items():
            entries[f"{name}@{preset}"] = f"{name} with preset values of {', '.join(map(str, values))}"
    return entries


def _described(name: str) -> tuple[str, Mapping[str, Mapping[str, object]]]:
    """Return the first line of a method's description, empty where there is none, and its presets."""
    own = own_description(name) if METHODS.entry(name) is None else None
    if own is not None:
        return own.headline, own.presets
    cls = method_class(name)
    return str(cls.__dict__.get("__doc__") or "").strip().partition("\n")[0], cls.presets


def method_config(spec: RunSpec) -> Method.Config:
    """Return a spec's typed hyper-parameters: defaults, the stream's tuned values, the preset's, then the overrides.

    Raises UsageError for a setting that does not exist or cannot have its value.
    """
    cls = method_class(spec.method)
    preset = cls.presets.get(spec.method.partition("@")[2], {})
    values: dict[str, object] = {**cls.tuned.get(spec.stream, {}), **preset, **spec.config}
    known = list(cls.Config.model_fields)
    for key in spec.config:
        if key not in known:
            raise UsageError(f"method {spec.method!r} has no setting {clean(key, 80)!r}: {nearest(key, known)}")
    try:
        config = cls.Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"settings of method {spec.method!r} are wrong: {spec_errors(error, known)}") from error
    except Exception as error:
        raise UsageError(f"method {spec.method!r} cannot read its settings: {blame(error)}") from error
    if cls.stage_settings:
        config = with_stages(config, cls, architecture(spec.network).stages)
    try:
        described(config.model_dump(mode="json"))
    except ValueError as error:
        raise UsageError(f"settings of method {spec.method!r} cannot stand in a result: {error}") from error
    for key, value in spec.config.items():
        if isinstance(value, bool) and not isinstance(getattr(config, key), bool):  # pydantic takes true for 1
            raise UsageError(f"setting {key!r} of method {spec.method!r} is {value} but a number or text was expected")
    return config


def check_execution(spec: RunSpec) -> None:
    """Raise UsageError for `lean` if the method chose no techniques for it: it would be run plainly."""
    if LEAN in spec.execution.split(",") and not method_class(spec.method).lean:
        raise UsageError(
            f"method {spec.method!r} chose no techniques for lean execution, so --execution {spec.execution} says "
            "nothing about it; name techniques (`clmem list techniques`), for example --execution trunk_chunk=4, or "
            "set `lean` in its class"
        )


def with_stages(config: Method.Config, cls: type[Method], stages: Stages) -> Method.Config:
    """Return settings in which `tail`, `before_tail` and `head` are replaced by a network's stages.

    A stage that has such a name itself is meant by it.
    """
    asked = {key: getattr(config, key) for key in cls.stage_settings}
    by_role = {role: stage for role, stage in stages.by_role.items() if role not in stages.names}
    changed = {key: by_role[value] for key, value in asked.items() if value in by_role}
    return config.model_copy(update=changed) if changed else config


def _places() -> dict[str, str]:
    return {name: f"methods/{name.replace('-', '_')}.py" for name in own_methods()}


def _in_file(name: str) -> type:
    module = importlib.import_module(f"clmem.methods.{name.replace('-', '_')}")
    for value in vars(module).values():
        if isinstance(value, type) and vars(value).get("name") == name:
            return value
    raise UsageError(f"{module.__file__} holds no subclass of Method with name = {name!r}; give the class that name")


METHODS = Plugins("method", "clmem.methods", own=_places, load=_in_file)


def _checked(found: Any, place: str, name: str) -> type[Method]:
    """Return what was found under a method's name. Raises UsageError if it does not have the form of a method."""
    from clmem.methods.base import Method

    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"{place!r} of method {name!r} is no subclass of clmem.methods.base.Method; make it one")
    wanted = {
        "name": isinstance(getattr(found, "name", None), str),
        "Config": isinstance(found.Config, type) and issubclass(found.Config, BaseModel),
        "lean": isinstance(found.lean, Mapping),
        **{key: _by_name(getattr(found, key)) for key in ("presets", "tuned")},
    }
    for attribute, is_right in wanted.items():
        if not is_right:
            raise UsageError(
                f"the class {place!r} of method {name!r} has no usable {attribute!r}; see methods/base.py for its form"
            )
    return found


def _by_name(value: object) -> bool:
    """Say whether a value holds settings by name."""
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(settings, Mapping) for key, settings in value.items()
    )
