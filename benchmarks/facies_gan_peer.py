"""A plain pyramid GAN of RGB images, built with PyTorch's own layers, for benchmarks/facies_gan.py.

SinGAN's layout (Shaham et al. 2019): zero-padded convolutions with batch norm, a generator and a critic a
scale, one scale trained after the other. Its training step runs every lower scale again for every update, has
a gradient penalty in every critic update and a forward pass of its own for each diversity sample.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

UPDATES, DIVERSITY_SAMPLES, PENALTY = 3, 3, 0.1


class Block(nn.Sequential):
    """Five 3 x 3 convolutions with batch norm and LeakyReLU between them."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs = width
        super().__init__(*layers, nn.Conv2d(width, outputs, 3, padding=1))


class PlainPyramid(nn.Module):
    """Generators and critics of RGB images, conditioned on an RGB image of wells.

    Args:
        sides: of the square scales, coarse to fine.
        widths: features of each scale.
    """

    def __init__(self, sides: list[int], widths: list[int]) -> None:
        super().__init__()
        self.sides = sides
        self.generators = nn.ModuleList(Block(6 if k == 0 else 9, w, 3) for k, w in enumerate(widths))
        self.critics = nn.ModuleList(Block(3, w, 1) for w in widths)

    def generate(self, batch: int, top: int) -> torch.Tensor:
        """Return images [B, 3, H, W] of scale `top`, all scales below run again."""
        image = torch.zeros(batch, 3, self.sides[0], self.sides[0])
        for k in range(top + 1):
            side = self.sides[k]
            wells = torch.zeros(batch, 3, side, side)
            parts = [torch.randn(batch, 3, side, side), wells]
            if k:
                image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
                parts.append(image)
            image = torch.tanh(self.generators[k](torch.cat(parts, dim=1)) + (image if k else 0))
        return image

    def train_iteration(self, scale: int, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        """Do three critic and three generator updates of one scale, batch 1."""
        side = self.sides[scale]
        real = torch.randn(1, 3, side, side).clamp(-1, 1)
        critic = self.critics[scale]
        for _ in range(UPDATES):
            with torch.no_grad():
                fake = self.generate(1, scale)
            share = torch.rand(1, 1, 1, 1)
            between = (share * real + (1 - share) * fake).requires_grad_(True)
            (gradient,) = torch.autograd.grad(critic(between).mean(), between, create_graph=True)
            penalty = (gradient.norm(dim=1) - 1).square().mean()
            loss = critic(fake).mean() - critic(real).mean() + PENALTY * penalty
            optimizers[0].zero_grad(set_to_none=True)
            loss.backward()
            optimizers[0].step()
        for _ in range(UPDATES):
            fake = self.generate(1, scale)
            draws = [self.generate(1, scale) for _ in range(DIVERSITY_SAMPLES)]
            pairs = [(a - b).square().mean() for i, a in enumerate(draws) for b in draws[:i]]
            loss = 10 * F.mse_loss(fake, real) - critic(fake).mean() - torch.stack(pairs).mean()
            optimizers[1].zero_grad(set_to_none=True)
            loss.backward()
            optimizers[1].step()


def peer_iteration(sides: list[int], widths: list[int], scale: int) -> PlainIteration:
    """Return a function that trains one scale of a new pyramid for one iteration."""
    return PlainIteration(PlainPyramid(sides, widths), scale)


class PlainIteration:
    """One training iteration of a scale; the scales below are frozen."""

    def __init__(self, pyramid: PlainPyramid, scale: int) -> None:
        self.pyramid, self.scale = pyramid, scale
        pyramid.requires_grad_(False)
        networks = pyramid.critics[scale], pyramid.generators[scale]
        for network in networks:
            network.requires_grad_(True)
        self.optimizers = tuple(torch.optim.Adam(n.parameters(), 5e-4, (0.5, 0.999)) for n in networks)

    def __call__(self) -> None:
        """Train."""
        self.pyramid.train_iteration(self.scale, self.optimizers)
