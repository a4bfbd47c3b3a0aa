"""The networks of the papers' ImageNet experiments, so that a recipe needs no torchvision.

The parameters are those of the usual definitions, in the same shapes: He et al. 2016 (arXiv 1512.03385; the stride of
a bottleneck lies in its 3x3 convolution) and Simonyan & Zisserman 2015 (arXiv 1409.1556, configuration D).
"""

from torch import Tensor, nn

STEM = 64  # channels after the first convolution of a ResNet
VGG_WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, and convolutions of that width


class Residual(nn.Module):
    """Convolutions, each normalised, added to a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, *convolutions: nn.Module) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*convolutions)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(*_convolution(n_in, n_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.convolutions(x) + self.shortcut(x)).relu()
        return y


def _convolution(n_in: int, n_out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(n_out)


def _basic(n_in: int, width: int, stride: int) -> Residual:
    first, second = _convolution(n_in, width, 3, stride), _convolution(width, width, 3)
    return Residual(n_in, width, stride, *first, nn.ReLU(), *second)


def _bottleneck(n_in: int, width: int, stride: int) -> Residual:
    first, second = _convolution(n_in, width, 1), _convolution(width, width, 3, stride)
    third = _convolution(width, 4 * width, 1)
    return Residual(n_in, 4 * width, stride, *first, nn.ReLU(), *second, nn.ReLU(), *third)


def _resnet(counts: tuple[int, ...], *, bottleneck: bool, channels: int, n_classes: int) -> nn.Module:
    block, expansion = (_bottleneck, 4) if bottleneck else (_basic, 1)
    layers: list[nn.Module] = [*_convolution(channels, STEM, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    n_in = STEM
    for stage, count in enumerate(counts):
        width = STEM * 2**stage
        for i in range(count):
            layers.append(block(n_in, width, 2 if stage and i == 0 else 1))
            n_in = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


def resnet18(size: int = 224, channels: int = 3, n_classes: int = 1000) -> nn.Module:  # noqa: ARG001  any size will do
    """ResNet-18; 11,689,512 weights for 1000 classes."""
    return _resnet((2, 2, 2, 2), bottleneck=False, channels=channels, n_classes=n_classes)


def resnet50(size: int = 224, channels: int = 3, n_classes: int = 1000) -> nn.Module:  # noqa: ARG001  as above
    """ResNet-50; 25,557,032 weights for 1000 classes."""
    return _resnet((3, 4, 6, 3), bottleneck=True, channels=channels, n_classes=n_classes)


def vgg16(size: int = 224, channels: int = 3, n_classes: int = 1000) -> nn.Module:
    """VGG-16; 138,357,544 weights for 1000 classes at 224 pixels. The images must be 32 pixels or larger."""
    layers: list[nn.Module] = []
    n_in = channels
    for width, count in VGG_WIDTHS:
        for _ in range(count):
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU()]
            n_in = width
        layers.append(nn.MaxPool2d(2))
    n_features = n_in * (size // 2 ** len(VGG_WIDTHS)) ** 2
    for convolution in layers:
        if isinstance(convolution, nn.Conv2d):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    hidden = [nn.Linear(n_features, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(4096, n_classes))
