"""The convolutional branch of the ViT-Adapter."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class SpatialPrior(nn.Module):
    """A small convolutional pyramid that tells the ViT what lies between its patches.

    Source: ViT-Adapter (arXiv 2205.08534), section 3.2 (Spatial Prior Module); parameter names are those of its
    published checkpoints.

    Args:
        inplane: channels at stride 4; strides 8, 16 and 32 have 2, 4 and 4 times as many.
        embed_dim: channels of the four outputs.
        norm_layer: makes the normalisation of the given number of channels.
    """

    def __init__(self, inplane: int, embed_dim: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, inplane, 2, norm_layer),
            *_convolution(inplane, inplane, 1, norm_layer),
            *_convolution(inplane, inplane, 1, norm_layer),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(inplane, 2 * inplane, 2, norm_layer))
        self.conv3 = nn.Sequential(*_convolution(2 * inplane, 4 * inplane, 2, norm_layer))
        self.conv4 = nn.Sequential(*_convolution(4 * inplane, 4 * inplane, 2, norm_layer))
        self.fc1 = nn.Conv2d(inplane, embed_dim, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * inplane, embed_dim, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * inplane, embed_dim, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * inplane, embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps of pictures ``(b, 3, H, W)`` at strides 4, 8, 16 and 32, each ``(b, embed_dim, H / s, W / s)``.

        Sides that are not multiples of 32 are rounded up at every halving.
        """
        stride4 = self.stem(images)
        stride8 = self.conv2(stride4)
        stride16 = self.conv3(stride8)
        stride32 = self.conv4(stride16)
        return self.fc1(stride4), self.fc2(stride8), self.fc3(stride16), self.fc4(stride32)


def _convolution(
    inplane: int, plane: int, stride: int, norm_layer: Callable[[int], nn.Module]
) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        nn.Conv2d(inplane, plane, kernel_size=3, stride=stride, padding=1, bias=False),
        norm_layer(plane),
        nn.ReLU(inplace=True),
    )
