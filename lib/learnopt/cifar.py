"""The network and the images of the original's experiments on CIFAR-10.

    data = images("cifar10", device="cuda")          # all on the device, in [0, 1]
    net = resnet18(generator(0, "init"))
    outputs = net(data.look(shifted(x, generator(0, "crops"))))

As in the public code of Im, Savin & Cho 2021: the network, torch's default initialization, crops of
images padded by 4 black pixels, mirror images, colours normalised after that. A narrower network
and smaller images are for machines without a GPU.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from learnopt import datasets

COLOURS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10's, as in the original


class Images(NamedTuple):
    """Pairs of images ``(n, 3, H, W)`` in [0, 1] and labels ``(n,)``; ``shift`` and ``scale`` of
    the colours, ``(3, 1, 1)``."""

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shift: Tensor
    scale: Tensor

    def look(self, x: Tensor) -> Tensor:
        """Normalised images: what the network is given."""
        return (x - self.shift) / self.scale


def images(name="cifar10", n_images=0, device="cpu", root=None, pool=1) -> Images:
    """A data set of ``datasets``, or the first ``n_images`` of each part; grey ones get 3 channels.

    Colours are normalised by the original's numbers, those of other data sets than CIFAR-10 by the
    training images' own. ``pool`` > 1: each square of ``pool`` x ``pool`` pixels becomes its mean.
    Raises ``datasets.DatasetError`` as ``datasets.load`` does.
    """
    data = datasets.load(name, root, device)
    parts = []
    for part in ("train", "valid", "test"):
        x, y = (getattr(data, f"{letter}_{part}")[: n_images or None] for letter in "xy")
        x = x if x.dim() == 4 else x[:, None].expand(-1, 3, -1, -1)
        parts.append((x if pool == 1 else F.avg_pool2d(x, pool), y))
    x = parts[0][0]
    own = x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist()
    colours = [torch.tensor(u, device=x.device)[:, None, None] for u in
               (COLOURS if name == "cifar10" else own)]  # fmt: skip
    return Images(name, *parts, *colours)


def resnet18(made: torch.Generator, width=64) -> nn.Module:
    """ResNet18 for images of 32x32 and 10 classes: 11,173,962 parameters in 62 tensors.

    torchvision's, with a 3x3 stem and no pooling after it (He et al. 2016, section 4.2, in the form
    that the original uses), and torch's default initialization of its layers, drawn from ``made``.
    ``width``: channels of the first stage, where ResNet18 has 64; each later stage doubles them.
    """
    with torch.device("meta"):  # draws nothing from the global stream
        net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.Identity()
        if width != 64:  # torchvision has no argument for it
            net.bn1, net.fc, net.inplanes = nn.BatchNorm2d(width), nn.Linear(8 * width, 10), width
            for k in range(4):
                stage = net._make_layer(BasicBlock, width * 2**k, 2, stride=1 if k == 0 else 2)
                setattr(net, f"layer{k + 1}", stage)
    for module in net.to_empty(device="cpu").modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=made)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.bias, -bound, bound, generator=made)
    return net


def shifted(x: Tensor, made: torch.Generator) -> Tensor:
    """Each image ``(n, c, H, W)`` moved by up to H/8 pixels over black, half of them mirrored.

    H/8 is 4 for images of 32x32, as in the original. All in one gather on the device. ``made`` is a
    generator of the CPU, so that the draws are the same on every device: corners (n, 2) first, then
    mirrors (n,).
    """
    n, c, height, width = x.shape
    pad = height // 8
    corners = torch.randint(0, 2 * pad + 1, (n, 2), generator=made).to(x.device)
    mirrored = torch.randint(0, 2, (n, 1), generator=made).to(x.device) == 1
    rows = corners[:, :1] + torch.arange(height, device=x.device)
    columns = corners[:, 1:] + torch.arange(width, device=x.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    image, channel = torch.arange(n, device=x.device), torch.arange(c, device=x.device)
    at = image[:, None, None, None], channel[:, None, None]
    return F.pad(x, (pad,) * 4)[(*at, rows[:, None, :, None], columns[:, None, None, :])]
