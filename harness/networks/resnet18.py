"""The networks: ResNet-18 with the CIFAR stem, at any width, splittable at named boundaries.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Parameter names are torchvision's. The CIFAR stem
is one 3x3 convolution of stride 1 and no pooling, as everywhere in the continual-learning literature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clmem.harness.errors import UsageError, nearest
from clmem.methods.base import Network


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; its ReLUs are modules of their own so that they can be watched."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu2 = nn.ReLU()
        self.inplace_sum = False
        """Whether the sum with the shortcut overwrites what is summed, the output of `bn2`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels_in, h, w] to [n, channels_out, h / stride, w / stride]."""
        return self.second(self.first(x), x)

    def first(self, x: Tensor) -> Tensor:
        """Return what lies between the two convolutions, [n, channels_out, h / stride, w / stride]."""
        return self.relu1(self.bn1(self.conv1(x)))  # type: ignore[no-any-return]

    def second(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the block's output from what lies between and from its input, which the shortcut takes."""
        y = self.bn2(self.conv2(y))
        if self.inplace_sum:
            return self.relu2(y.add_(self._shortcut(x)))  # type: ignore[no-any-return]
        return self.relu2(y + self._shortcut(x))  # type: ignore[no-any-return]

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class ResNet18(Network):
    """ResNet-18 for small images. With width 64 and 10 classes: 11,173,962 parameters.

    Stages, which are also the boundaries at which it can be split: stem, layer1.0 ... layer4.1, fc. The name of a
    whole layer stands for its first block (`layer4` is `layer4.0`).
    imagenet_stem: torchvision's stem instead, a 7x7 convolution and a 3x3 pooling, both of stride 2: 11,689,512
    parameters with width 64 and 1,000 classes.
    """

    def __init__(self, num_classes: int, width: int = 64, imagenet_stem: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if imagenet_stem else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool: nn.MaxPool2d | None = nn.MaxPool2d(3, 2, 1) if imagenet_stem else None
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, num_classes)

    @property
    def boundaries(self) -> list[str]:
        """Names of the stages in order; the network can be split before any of them but the first."""
        return ["stem", *(f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2)), "fc"]

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (included) to `stop` (excluded); None is the beginning and the end.

        The whole network maps [n, 3, H, W] to logits [n, classes]. Raises UsageError for a boundary it lacks.
        """
        names = self.boundaries
        first = 0 if start is None else self.stage_index(start)
        last = len(names) if stop is None else self.stage_index(stop)
        for name in names[first:last]:
            if name == "stem":
                x = self.relu(self.bn1(self.conv1(x)))
                x = x if self.maxpool is None else self.maxpool(x)
            elif name == "fc":
                x = self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
            else:
                x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, 3, H, W] to logits [n, classes]."""
        return self.run(x)

    def is_divisible(self, stage: str) -> bool:
        """Return whether a stage has parts: a block has two."""
        return stage not in ("stem", "fc")

    def run_parts(self, stage: str, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Run a block, each of its two convolutions with what follows it by `run(function, *inputs)`."""
        block = self.get_submodule(stage)
        assert isinstance(block, BasicBlock)
        return run(block.second, run(block.first, x), x)

    def stage_index(self, boundary: str) -> int:
        """Return the position of a boundary. Raises UsageError with the nearest names."""
        names = self.boundaries
        for candidate in (boundary, f"{boundary}.0"):
            if candidate in names:
                return names.index(candidate)
        raise UsageError(f"this network has no boundary {boundary!r}: {nearest(boundary, names[1:])}")

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`."""
        names = self.boundaries[: self.stage_index(boundary)]
        modules: list[nn.Module] = [self.conv1, self.bn1, self.relu] if names else []
        if names and self.maxpool is not None:
            modules.append(self.maxpool)
        return modules + [self.get_submodule(name) for name in names[1:]]


NETWORKS = {
    "resnet18": "ResNet-18 with the CIFAR stem (3x3, stride 1, no pooling); --width 64 is the standard one",
    "resnet18-imagenet": "ResNet-18 with torchvision's stem (7x7, stride 2, pooling), for weights trained on ImageNet",
}


def build_network(name: str, *, num_classes: int, width: int, seed: int) -> ResNet18:
    """Make a network whose initial weights depend on the seed alone. Raises UsageError for an unknown name."""
    if name not in NETWORKS:
        raise UsageError(f"there is no network {name!r}: {nearest(name, list(NETWORKS))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet18(num_classes, width, imagenet_stem=name == "resnet18-imagenet")
