"""MobileNetV2 for small images, at any width, splittable at named boundaries.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. Parameter names are torchvision's,
whose weights it takes. For images of 32 x 32 the stem and the first stage of 24 channels have stride 1 instead of 2, as
in the widely used CIFAR version (github.com/kuangliu/pytorch-cifar, models/mobilenetv2.py). There is no dropout before
the head.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from clmem.harness.networks.architecture import STANDARD_WIDTH, Architecture
from clmem.harness.networks.staged import StagedNetwork, Stages

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block: the paper's Table 2 with the CIFAR version's strides."""
STEM, LAST = 32, 1280
"""Channels of the first and of the last convolution."""
DIVISOR = 8
"""Channels are a multiple of it at any width, as in the authors' code."""

STAGES = Stages((*(f"features.{number}" for number in range(19)), "classifier.1"), tail="features.14")
"""The stem, 17 blocks, the last convolution, the head. The tail begins where the maps become as small as they get."""


def _convolution(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; the input is added where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels_in * expansion
        widen = [] if expansion == 1 else [_convolution(channels_in, inside, 1)]
        self.conv = nn.Sequential(
            *widen,
            _convolution(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.is_residual = stride == 1 and channels_in == channels_out
        self.inplace_sum = False
        """Whether the sum with the input overwrites the output of the last batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels_in, h, w] to [n, channels_out, h / stride, w / stride]."""
        y: Tensor = self.conv(x)
        if not self.is_residual:
            return y
        return y.add_(x) if self.inplace_sum else x + y


class MobileNetV2(StagedNetwork):
    """MobileNetV2 for small images. With width 64 and 10 classes: 2,236,682 parameters.

    Stages, which are also the boundaries at which it can be split: features.0 ... features.18, classifier.1.
    """

    stages = STAGES

    def __init__(self, num_classes: int, width: int = STANDARD_WIDTH) -> None:
        super().__init__()
        channels = _scaled(STEM, width)
        features: list[nn.Module] = [_convolution(3, channels, 3)]
        for expansion, wanted, blocks, stride in BLOCKS:
            for block in range(blocks):
                following = _scaled(wanted, width)
                features.append(InvertedResidual(channels, following, 1 if block else stride, expansion))
                channels = following
        last = _scaled(LAST, max(width, STANDARD_WIDTH))  # a narrow network keeps all of these, as published
        features.append(_convolution(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(OrderedDict({"1": nn.Linear(last, num_classes)}))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (included) to `stop` (excluded); None is the beginning and the end.

        The whole network maps [n, 3, H, W] to logits [n, classes]. Raises UsageError for a boundary it lacks.
        """
        first = 0 if start is None else self.stage_index(start)
        last = len(self.stages.names) if stop is None else self.stage_index(stop)
        for name in self.stages.names[first:last]:
            if name == self.head_stage:
                x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
            x = self.get_submodule(name)(x)
        return x

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`."""
        return [self.get_submodule(name) for name in self.stages.names[: self.stage_index(boundary)]]

    @property
    def feature_relus(self) -> list[str]:
        """Names of all ReLUs, which are cut off at 6: each runs once."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.ReLU6)]

    def relus_in_place(self) -> None:
        """Let every ReLU overwrite its input, the output of a batch norm."""
        for module in self.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True

    def sums_in_place(self) -> None:
        """Let every block's sum overwrite the output of its last batch norm."""
        for module in self.modules():
            if isinstance(module, InvertedResidual):
                module.inplace_sum = True


def _scaled(channels: int, width: int) -> int:
    """Return the channels at a width: the nearest multiple of 8, and not a tenth less than in proportion."""
    exact = channels * width / STANDARD_WIDTH
    nearest = max(DIVISOR, int(exact + DIVISOR / 2) // DIVISOR * DIVISOR)
    return nearest + DIVISOR if nearest < 0.9 * exact else nearest


def _build(*, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> MobileNetV2:
    return MobileNetV2(num_classes, width)


CIFAR = Architecture(
    "MobileNetV2 with the CIFAR strides; --width 64 is the standard one",
    _build,
    STAGES,
)
