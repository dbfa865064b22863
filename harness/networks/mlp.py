"""A perceptron of two hidden layers, the field's network for digits: 784-100-100 on images of 1 x 28 x 28.

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017: two hidden layers of 100 ReLU
units each. Images of any size are flattened, so streams of 3 x 32 x 32 give 3072-100-100.
"""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from clmem.harness.networks.architecture import STANDARD_WIDTH, Architecture
from clmem.harness.networks.staged import StagedNetwork, Stages

UNITS = 100
"""Of a hidden layer at width 64."""

STAGES = Stages(("hidden1", "hidden2", "head"), tail="hidden2")


class Perceptron(StagedNetwork):
    """Maps images [n, C, H, W] to logits [n, classes] by two hidden layers.

    Stages, which are also the boundaries at which it can be split: hidden1, hidden2, head.
    """

    stages = STAGES

    def __init__(self, inputs: int, units: int, num_classes: int) -> None:
        super().__init__()
        self.hidden1 = nn.Sequential(nn.Flatten(), nn.Linear(inputs, units), nn.ReLU())
        self.hidden2 = nn.Sequential(nn.Linear(units, units), nn.ReLU())
        self.head = nn.Linear(units, num_classes)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (included) to `stop` (excluded); None is the beginning and the end."""
        for module in self._between(start, stop):
            x = module(x)
        return x

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`."""
        return self._between(None, boundary)

    @property
    def feature_relus(self) -> list[str]:
        """Names of the ReLUs of the hidden layers."""
        return ["hidden1.2", "hidden2.1"]

    def relus_in_place(self) -> None:
        """Let both ReLUs overwrite what their linear layers give."""
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True

    def _between(self, start: str | None, stop: str | None) -> list[nn.Module]:
        modules: list[nn.Module] = [self.hidden1, self.hidden2, self.head]
        first = 0 if start is None else self.stage_index(start)
        return modules[first : len(modules) if stop is None else self.stage_index(stop)]


def _build(*, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> Perceptron:
    return Perceptron(prod(image_shape), max(1, round(UNITS * width / STANDARD_WIDTH)), num_classes)


PERCEPTRON = Architecture(
    "two hidden layers of ReLU units on flattened images; --width 64 is 100 units each", _build, STAGES
)
