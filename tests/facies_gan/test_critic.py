"""The critic: what it sees, and that samples do not meet."""

from __future__ import annotations

import torch

from facies_gan.critic import ScaleCritic
from facies_gan.generator import Architecture

ARCHITECTURE = Architecture(4, 5, 3, (8,))


def test_score_map_and_field():
    """The map is 10 cells smaller each way, and a cell of it sees 11 x 11 cells."""
    critic = ScaleCritic(ARCHITECTURE, 0, torch.Generator().manual_seed(0))
    x = torch.rand(1, 4, 30, 26, requires_grad=True)
    scores = critic(x, torch.zeros(1, 5, 30, 26))
    assert scores.shape == (1, 1, 20, 16)
    scores[0, 0, 7, 3].backward()
    rows, cols = x.grad.abs().sum(1)[0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (7, 17, 3, 13)


def test_samples_do_not_meet():
    """The score of a sample is the same whatever else is in the batch."""
    critic = ScaleCritic(ARCHITECTURE, 0)
    x, condition = torch.rand(3, 4, 16, 16), torch.rand(3, 5, 16, 16)
    mixed = torch.cat([torch.rand(1, 4, 16, 16), x[1:]])
    assert torch.equal(critic(x, condition)[1:], critic(mixed, condition)[1:])
    torch.testing.assert_close(critic(x, condition)[1:2], critic(x[1:2], condition[1:2]))


def test_conditioning_counts():
    """The same image scores differently under other data."""
    critic = ScaleCritic(ARCHITECTURE, 0)
    x = torch.rand(1, 4, 16, 16)
    told = torch.zeros(1, 5, 16, 16)
    told[0, [2, 4], 8, 8] = 1
    assert not torch.equal(critic(x, torch.zeros(1, 5, 16, 16)), critic(x, told))
