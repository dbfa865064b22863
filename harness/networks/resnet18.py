"""ResNet-18 with the CIFAR stem or with torchvision's, at any width, splittable at named boundaries.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Parameter names are torchvision's. The CIFAR stem
is one 3x3 convolution of stride 1 and no pooling, as everywhere in the continual-learning literature.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

from clmem.harness.networks.architecture import Architecture
from clmem.harness.networks.staged import StagedNetwork, Stages
from clmem.methods.base import Convolution, Network

STAGES = Stages(
    ("stem", *(f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2)), "fc"), tail="layer4"
)

_PRUNABLE = re.compile(r"conv1|bn1|fc|layer\d\.\d+\.(conv[12]|bn[12]|downsample\.[01])")

_SHORT_NAMES = re.compile(r"^layer(\d+)_(\d+)\.0\.")


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


class ResNet18(StagedNetwork):
    """ResNet-18 for small images. With width 64 and 10 classes: 11,173,962 parameters.

    Stages, which are also the boundaries at which it can be split: stem, layer1.0 ... layer4.1, fc. The name of a
    whole layer stands for its first block (`layer4` is `layer4.0`).
    imagenet_stem: torchvision's stem instead, a 7x7 convolution and a 3x3 pooling, both of stride 2: 11,689,512
    parameters with width 64 and 1,000 classes.
    """

    stages = STAGES

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

    def is_divisible(self, stage: str) -> bool:
        """Return whether a stage has parts: a block has two."""
        return stage not in ("stem", "fc")

    def run_parts(self, stage: str, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Run a block, each of its two convolutions with what follows it by `run(function, *inputs)`."""
        block = self.get_submodule(stage)
        assert isinstance(block, BasicBlock)
        return run(block.second, run(block.first, x), x)

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`."""
        names = self.boundaries[: self.stage_index(boundary)]
        modules: list[nn.Module] = [self.conv1, self.bn1, self.relu] if names else []
        if names and self.maxpool is not None:
            modules.append(self.maxpool)
        return modules + [self.get_submodule(name) for name in names[1:]]

    @property
    def feature_relus(self) -> list[str]:
        """Names of all ReLUs: each runs once."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.ReLU)]

    def closing_relu(self, stage: str) -> str | None:
        """Return the ReLU behind a block's sum."""
        return f"{stage}.relu2" if self.is_divisible(stage) else None

    def relus_in_place(self) -> None:
        """Let every ReLU overwrite its input, the output of a batch norm or of a sum."""
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True

    def sums_in_place(self) -> None:
        """Let every block's sum overwrite the output of its second batch norm."""
        for module in self.modules():
            if isinstance(module, BasicBlock):
                module.inplace_sum = True

    def convolutions(self) -> list[Convolution]:
        """Return all convolutions; see `convolutions_of`."""
        return convolutions_of(self)

    def own_name(self, name: str) -> str:
        """Return torchvision's name of a tensor of another ResNet-18.

        Known are the published LightCL checkpoint (`layer4_2.0` is our `layer4.1`, `linear` our `fc`) and the usual
        CIFAR ResNet (`shortcut` is our `downsample`).
        """
        name = _SHORT_NAMES.sub(lambda match: f"layer{match[1]}.{int(match[2]) - 1}.", name)
        return re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")

    def advice_on(self, name: str, shape: tuple[int, ...]) -> str:
        """Return which stem or width a file was saved with, as far as its first convolution tells."""
        if name != "conv1.weight" or len(shape) != 4:
            return ""
        own, stems = self.conv1.weight.shape, {7: "resnet18-imagenet", 3: "resnet18"}
        if shape[2:] != own[2:] and shape[2] in stems:
            return f"its stem is that of --network {stems[shape[2]]}"
        return f"it was saved with --width {shape[0]}" if shape[1:] == own[1:] else ""


def convolutions_of(network: Network) -> list[Convolution]:
    """Return the convolutions of a ResNet of basic blocks in order, shortcuts after the block's own.

    They are `conv1`, `layerN.B.conv1`, `layerN.B.conv2` and `layerN.B.downsample.0`. Every one but the first and the
    shortcuts reads the one before it. Outputs of `conv2` and of shortcuts of a layer are added; the stem's are added to
    those of layer1. Raises ValueError for a network with any other weights.
    """
    found: list[Convolution] = []
    before: str | None = None
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not _PRUNABLE.fullmatch(name):
            raise ValueError(
                f"channels can be pruned in a ResNet of basic blocks, and this network has weights in {name!r}; "
                "use resnet18, or a method that does not prune"
            )
        if not isinstance(module, nn.Conv2d):
            continue
        layer, _, inner = name.partition(".")
        depth = 0 if name == "conv1" else int(layer.removeprefix("layer"))
        if "downsample" in name:
            norm = name.replace(".downsample.0", ".downsample.1")
            found.append(Convolution(name, norm, layer, reads=None, depth=depth, relu=None))
            continue
        summed = "layer1" if name == "conv1" else layer if inner.endswith("conv2") else name
        relu = "relu" if name == "conv1" else name.replace("conv", "relu")
        found.append(Convolution(name, name.replace("conv", "bn"), summed, reads=before, depth=depth, relu=relu))
        before = name
    return found


def _with_cifar_stem(*, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> ResNet18:
    return ResNet18(num_classes, width)


def _with_imagenet_stem(*, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> ResNet18:
    return ResNet18(num_classes, width, imagenet_stem=True)


CIFAR = Architecture(
    "ResNet-18 with the CIFAR stem (3x3, stride 1, no pooling); --width 64 is the standard one",
    _with_cifar_stem,
    STAGES,
)
IMAGENET = Architecture(
    "ResNet-18 with torchvision's stem (7x7, stride 2, pooling), for ImageNet weights",
    _with_imagenet_stem,
    STAGES,
)
