"""Networks for pictures: a small CNN for digits; LeNet-300-100 for MNIST; VGG-16 and ResNet-20 for CIFAR-10.

Every activation is an ``nn.ReLU`` of its own and not in place, so that it can be exchanged for another one; all
weights that are pruned are those of ``nn.Conv2d`` and ``nn.Linear``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad

# Simonyan & Zisserman 2015, table 1, column D: filters of each convolution, 0 where the picture is halved.
VGG16_FILTERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
RESNET20_FILTERS = (16, 16, 16, 32, 32, 32, 64, 64, 64)  # of each block


def tiny_cnn(outputs: int = 10) -> nn.Module:
    """Pictures of 64 pixels, (batch, 64) or (batch, 1, 8, 8), through two convolutions: 45,320 weights.

    About as large as the MLP for the same digits (50,200). No batch normalization. PyTorch's own initialization.
    """
    layers: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "picture": nn.Unflatten(1, (1, 8, 8)),
        "conv1": nn.Conv2d(1, 32, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(32, 64, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "features": nn.Flatten(),
        "hidden": nn.Linear(256, 100),
        "relu3": nn.ReLU(),
        "output": nn.Linear(100, outputs),
    }
    return nn.Sequential(OrderedDict(layers))


def lenet_300_100(outputs: int = 10) -> nn.Module:
    """Pictures of 784 pixels, such as (batch, 1, 28, 28), through 300 and 100 hidden units: 266,200 weights.

    Source: LeCun et al. 1998, section III.C.7; as all pruning papers have it, with ReLU. PyTorch's own initialization.
    """
    layers: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "hidden1": nn.Linear(784, 300),
        "relu1": nn.ReLU(),
        "hidden2": nn.Linear(300, 100),
        "relu2": nn.ReLU(),
        "output": nn.Linear(100, outputs),
    }
    return nn.Sequential(OrderedDict(layers))


def vgg16(outputs: int = 10) -> nn.Module:
    """Colour pictures (batch, 3, 32 or more, 32 or more) through 13 convolutions: 14.7 million weights.

    Source: Simonyan & Zisserman 2015, configuration D, in its usual form for CIFAR: batch normalization after every
    convolution, and the mean over what is left of the picture and one linear layer for the three large ones.
    """
    layers: dict[str, nn.Module] = {}
    number, inputs = 0, 3
    for filters in VGG16_FILTERS:
        if filters:
            number += 1
            layers[f"conv{number}"] = _conv(inputs, filters)
            layers[f"norm{number}"] = nn.BatchNorm2d(filters)
            layers[f"relu{number}"] = nn.ReLU()
            inputs = filters
        else:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "output": nn.Linear(inputs, outputs)}
    return nn.Sequential(OrderedDict(layers))


def resnet20(outputs: int = 10) -> nn.Module:
    """Colour pictures (batch, 3, height, width), 32 x 32 in the paper, through 9 residual blocks: 268,336 weights.

    Source: He et al. 2016, section 4.2, n = 3. Shortcuts are option A, as there: they have no weights.
    """
    blocks: dict[str, nn.Module] = {}
    inputs = RESNET20_FILTERS[0]
    for number, filters in enumerate(RESNET20_FILTERS, 1):
        blocks[f"block{number}"] = Block(inputs, filters)
        inputs = filters
    layers: dict[str, nn.Module] = {
        "conv": _conv(3, RESNET20_FILTERS[0]),
        "norm": nn.BatchNorm2d(RESNET20_FILTERS[0]),
        "relu": nn.ReLU(),
        **blocks,
        "mean": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "output": nn.Linear(inputs, outputs),
    }
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """Two convolutions and a shortcut around them; with more filters than inputs, the picture is halved.

    The shortcut then takes every second pixel and fills the new channels with zeros (He et al. 2016, option A).
    """

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.new = filters - inputs
        self.conv1 = _conv(inputs, filters, stride=2 if self.new else 1)
        self.norm1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(filters, filters)
        self.norm2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, filters, height, width), or half the height and width."""
        found: Tensor = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(inputs)))))
        shortcut = pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new)) if self.new else inputs
        outputs: Tensor = self.relu2(found + shortcut)
        return outputs


def _conv(inputs: int, filters: int, *, stride: int = 1) -> nn.Conv2d:
    """3 x 3, without a bias, which the normalization behind it would take away; He et al. 2015, eq. 10."""
    conv = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


NETS: dict[str, Callable[[int], nn.Module]] = {
    "tiny-cnn": tiny_cnn,
    "lenet-300-100": lenet_300_100,
    "vgg16": vgg16,
    "resnet20": resnet20,
}
