"""The one place where networks are looked up by name: ours, and those of other packages' entry points.

Another package adds its own with an entry point in the group `clmem.networks` (`harness/plugins.py`). It leads to an
`Architecture`, or to a `Family` of several, whose models are asked for as `name:model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from clmem.harness.errors import ClmemError, UsageError, blame, nearest
from clmem.harness.out_of_memory import is_limited, means_out_of_memory
from clmem.harness.plugins import Plugins
from clmem.harness.results.source import modules_digest
from clmem.harness.text import clean, some

if TYPE_CHECKING:
    from clmem.harness.networks.architecture import Architecture
    from clmem.methods.base import Network

GROUP = "clmem.networks"

OWN = {
    "resnet18": "clmem.harness.networks.resnet18:CIFAR",
    "resnet18-imagenet": "clmem.harness.networks.resnet18:IMAGENET",
    "mobilenet-v2": "clmem.harness.networks.mobilenet_v2:CIFAR",
    "mlp": "clmem.harness.networks.mlp:PERCEPTRON",
    "torchvision": "clmem.harness.networks.torchvision_models:MODELS",
}
"""Where ours lie."""

DEFAULT_SHAPE = (3, 32, 32)
"""Images that a network is made for unless others are named; few networks depend on them."""


def _load(name: str) -> Any:
    return EntryPoint(name, OWN[name], GROUP).load()


NETWORKS = Plugins("network", GROUP, own=lambda: OWN, load=_load)


def network_descriptions() -> dict[str, str]:
    """Return one line about every network that is installed, also about those that cannot be used."""
    from clmem.harness.networks.architecture import Family

    found: dict[str, str] = {}
    for name in NETWORKS.names():
        try:
            network = _found(name)
        except UsageError as error:  # somebody's plug-in; the others can be used all the same
            found[clean(name, 80)] = f"cannot be used: {error}"
            continue
        found[f"{name}:<model>" if isinstance(network, Family) else name] = clean(network.description, 200)
    return found


def build_network(
    name: str, *, num_classes: int, width: int, seed: int, image_shape: tuple[int, int, int] = DEFAULT_SHAPE
) -> Network:
    """Make a network whose initial weights depend on the seed alone.

    Raises UsageError for an unknown name, a width that the network does not have, and images that it cannot take.
    """
    import torch

    from clmem.harness.networks.architecture import STANDARD_WIDTH
    from clmem.methods.base import Network

    found = architecture(name)
    if width != STANDARD_WIDTH and not found.scales:
        raise UsageError(
            f"network {name!r} has one width, which is called {STANDARD_WIDTH}, but width {width} was asked for; "
            f"use --width {STANDARD_WIDTH}, or another network"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = found.build(num_classes=num_classes, width=width, image_shape=image_shape)
        except ClmemError:
            raise
        except Exception as error:
            if means_out_of_memory(error, limited=is_limited()):
                raise
            shape = " x ".join(map(str, image_shape))
            raise UsageError(
                f"network {clean(name, 80)!r} cannot be made for {num_classes} classes and images of {shape} "
                f"({blame(error)}); give other images, or another network"
            ) from error
    if not isinstance(network, Network):
        raise UsageError(
            f"network {clean(name, 80)!r} is made as a value of type {type(network).__name__}; make it a subclass of "
            "clmem.methods.base.Network"
        )
    _check_stages(name, network, found.stages.names)
    return network


def _check_stages(name: str, network: Network, stages: Sequence[str]) -> None:
    """Raise UsageError for a network that names other stages, or modules that it does not have."""
    if tuple(network.boundaries) != tuple(stages):
        raise UsageError(
            f"network {clean(name, 80)!r} is described with the stages {some(stages)}, but has the boundaries "
            f"{some(network.boundaries)}; give both the same ones, as `StagedNetwork` does"
        )
    modules = {module for module, _ in network.named_modules()}
    for what, named in (("its last stage", [network.head_stage]), ("feature_relus", network.feature_relus)):
        missing = [module for module in named if module not in modules]
        if missing:
            raise UsageError(
                f"network {clean(name, 80)!r} has no module {missing[0]!r}, which {what} names; give the name of one"
            )


def _found(name: str) -> Any:
    """Return the Architecture or Family of a name. Raises UsageError if it is neither."""
    from clmem.harness.networks.architecture import Architecture, Family

    found, place = NETWORKS.find(name)
    if not isinstance(found, Architecture | Family):
        raise UsageError(
            f"{place!r} of network {name!r} is neither an Architecture nor a Family of them; see "
            "harness/networks/architecture.py for its form"
        )
    return found


def network_digests(name: str) -> dict[str, str]:
    """Return the digest of the source of another package's network; of ours nothing, because they lie in what measures.

    Raises UsageError as `architecture`.
    """
    entry = NETWORKS.entry(name.partition(":")[0])
    if entry is None:
        return {}
    architecture(name)  # which imports it
    return {"network": modules_digest((entry.module,))}


@lru_cache(maxsize=64)
def architecture(name: str) -> Architecture:
    """Return what is known of a network before it is made.

    Raises UsageError for a name that does not exist, for one that two networks share, for what cannot be imported or is
    no network, and for a model that a family lacks.
    """
    from clmem.harness.networks.architecture import Architecture, Family

    family, colon, model = name.partition(":")
    found = _found(family)
    if isinstance(found, Architecture):
        if colon:
            raise UsageError(f"network {family!r} stands for itself and has no models; use --network {family}")
        return found
    assert isinstance(found, Family)
    models = found.models()
    if not colon:
        raise UsageError(
            f"network {family!r} has {len(models)} models; name one of them, such as --network {family}:{models[0]}"
        )
    if model not in models:
        raise UsageError(f"network {family!r} has no model {clean(model, 80)!r}: {nearest(model, models)}")
    return found.architecture(model)
