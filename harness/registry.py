"""The one place where methods are looked up by name: the files of `methods/`, and other packages' entry points.

A file `methods/my_idea.py` holds the class whose `name` is `my-idea`. Another package adds its own with an entry point
in the group `clmem.methods`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import methods
from harness.errors import UsageError, nearest
from harness.spec import RunSpec, spec_errors

if TYPE_CHECKING:
    from methods.base import Method

GROUP = "clmem.methods"


def method_names() -> list[str]:
    """Return the names of every known method, sorted."""
    own = {m.name.replace("_", "-") for m in pkgutil.iter_modules(methods.__path__) if not m.ispkg and m.name != "base"}
    return sorted(own | {entry.name for entry in entry_points(group=GROUP)})


def method_class(name: str) -> type[Method]:
    """Return the class of a method; `name` may carry a preset. Raises UsageError for what is not known."""
    name, at, preset = name.partition("@")
    found = _class(name)
    if at and preset not in found.presets:
        known = f"its presets are {', '.join(map(repr, found.presets))}" if found.presets else "it has none"
        raise UsageError(f"method {name!r} has no preset {preset!r}: {known}")
    return found


def _class(name: str) -> type[Method]:
    if name not in method_names():
        raise UsageError(f"there is no method {name!r}: {nearest(name, method_names())}")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            from methods.base import Method

            found: Any = entry.load()
            if not (isinstance(found, type) and issubclass(found, Method)):
                raise UsageError(
                    f"the entry point {entry.value!r} of method {name!r} must be a subclass of methods.base.Method"
                )
            return found
    module = importlib.import_module(f"methods.{name.replace('-', '_')}")
    for value in vars(module).values():
        if isinstance(value, type) and vars(value).get("name") == name:
            return value
    raise UsageError(f"{module.__file__} holds no subclass of Method with name = {name!r}; give the class that name")


def method_config(spec: RunSpec) -> Method.Config:
    """Return a spec's typed hyper-parameters: defaults, the stream's tuned values, the preset's, then the overrides."""
    cls = method_class(spec.method)
    preset = cls.presets.get(spec.method.partition("@")[2], {})
    values: dict[str, object] = {**cls.tuned.get(spec.stream, {}), **preset, **spec.config}
    known = list(cls.Config.model_fields)
    for key in spec.config:
        if key not in known:
            raise UsageError(f"method {spec.method!r} has no setting {key!r}: {nearest(key, known)}")
    try:
        return cls.Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"settings of method {spec.method!r} are wrong: {spec_errors(error, known)}") from error
