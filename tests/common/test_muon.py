"""Muon: orthogonal updates, AdamW for the rest, and a state that continues."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common.muon import KERNEL_LR, Muon, orthogonal
from common.optim import adamw


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal values from a stream of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 8, 3, 3, 3), (64, 24), (24, 64)])
def test_singular_values_come_near_one(shape: tuple[int, ...]):
    """Directions stay, lengths become about one, whatever the size of the gradient, wide or tall."""
    gradient = noise(*shape)
    update = orthogonal(1e-3 * gradient)
    torch.testing.assert_close(update, orthogonal(gradient), rtol=1e-2, atol=1e-3)
    left, before, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    rotated = left.T @ update.flatten(1) @ right.T
    assert before.max() / before.min() > 1.2  # else there was nothing to do
    assert rotated.diagonal().min() > 0.5 and rotated.diagonal().max() < 1.3
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-3


def gradients_of(network: nn.Module, seed: int) -> None:
    """Give every parameter a random gradient."""
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = noise(*parameter.shape, seed=100 * seed + number)


def test_norms_and_heads_are_those_of_adamw():
    """Gains, biases and kernels of few channels move as with AdamW; the other kernels by a set length."""
    first = nn.Sequential(nn.Conv3d(4, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 1, 1))
    second = copy.deepcopy(first)
    optimizers = Muon(first, 1e-3, 0.0), adamw(second, 1e-3, 0.0)
    for step in range(3):
        for network, optimizer in zip((first, second), optimizers, strict=True):
            gradients_of(network, step)
            optimizer.step()
    kernel = first[0].get_parameter("weight")
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (ours is not kernel), name
    before = kernel.detach().clone()
    gradients_of(first, 9)
    optimizers[0].step()
    length = torch.linalg.matrix_norm((kernel - before).flatten(1), 2)
    assert 0.5 * KERNEL_LR * 1e-3 < length < 1.3 * KERNEL_LR * 1e-3


def test_momentum_averages_gradients():
    """Gradients that alternate in sign move a kernel far less than those that agree."""
    moved = []
    for sign in (1.0, -1.0):
        layer = nn.Conv3d(8, 8, 3, bias=False)
        optimizer = Muon(layer, 1e-3, 0.0)
        start = layer.weight.detach().clone()
        for step in range(10):
            layer.weight.grad = sign**step * noise(*layer.weight.shape)
            optimizer.step()
        moved.append((layer.weight - start).norm().item())
    assert moved[1] < 0.3 * moved[0]


def test_a_quadratic_is_minimised():
    """Kernel and bias of a linear map are found, under a falling rate."""
    layer = nn.Linear(12, 10)
    x, target = noise(64, 12), noise(10, 12, seed=1)
    optimizer, losses = Muon(layer, 0.015, 0.0), []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 200)
    for _ in range(200):
        loss = (layer(x) - x @ target.T - 1.0).square().mean()
        layer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]


def test_kernels_of_few_inputs_and_other_decay():
    """`min_inputs` leaves narrow kernels to AdamW; `kernel_decay` is that of the orthogonal ones alone."""
    network = nn.Sequential(nn.Conv3d(4, 8, 3), nn.Conv3d(8, 8, 3))
    small, plain, wide = Muon(network, 1e-3, 0.01, min_inputs=8, kernel_decay=0.1).param_groups
    assert [len(g["params"]) for g in (small, plain, wide)] == [1, 2, 1]
    assert [g["weight_decay"] for g in (small, plain, wide)] == [0.01, 0.0, 0.1]


def network() -> nn.Sequential:
    """Return a small network with wide and narrow kernels and norms."""
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 16, 3), nn.Conv3d(16, 1, 1))


def test_a_loaded_state_continues_to_the_bit():
    """Weights and optimizer state saved after two steps lead to the same weights after four."""
    first = network()
    optimizer = Muon(first, 2e-3, 1e-2)
    for step in range(4):
        if step == 2:
            other = copy.deepcopy(first)
            resumed = Muon(other, 2e-3, 1e-2)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        gradients_of(first, step)
        optimizer.step()
        if step >= 2:
            gradients_of(other, step)
            resumed.step()
    for (name, ours), theirs in zip(first.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_every_parameter_is_trained_once():
    """No parameter of a network is left out or in two groups; frozen ones are in none."""
    whole = network()
    whole[0].requires_grad_(False)
    found = [id(p) for group in Muon(whole, 1e-3, 0.0).param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in whole.parameters() if p.requires_grad)
