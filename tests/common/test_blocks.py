"""Promises of the tiles: exact, smooth, streamed, within the budget."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common import blocks
from common.errors import DataError, UserError

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def local_network(num_axes: int) -> nn.Module:
    """Return a net of three convolutions with zero padding; receptive radius 1 + 2 + 1 = 4."""
    torch.manual_seed(0)
    conv = CONVS[num_axes]
    return nn.Sequential(
        conv(2, 4, 3, padding=1), nn.SiLU(), conv(4, 4, 5, padding=2), nn.SiLU(), conv(4, 3, 3, padding=1)
    )


class StridedNetwork(nn.Module):
    """Down by 4, a convolution there, up by 4, and a skip; receptive radius within 12."""

    def __init__(self, num_axes: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = CONVS[num_axes]
        self.down = conv(2, 4, 4, stride=4)
        self.middle = conv(4, 3, 3, padding=1)
        self.skip = conv(2, 3, 1)
        self.up = nn.Upsample(scale_factor=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2, *tile] -> [B, 3, *tile], tile lengths multiples of 4."""
        return self.up(self.middle(torch.relu(self.down(x)))) + self.skip(x)


def volume_of(shape: tuple[int, ...], channels: int = 2) -> np.ndarray:
    """Return fixed noise [C, *shape]."""
    return np.random.default_rng(0).standard_normal((channels, *shape)).astype(np.float32)


class Collector:
    """A `write` that checks the order and puts the slabs together."""

    def __init__(self, start: int = 0) -> None:
        self.start, self.next, self.slabs = start, start, []

    def __call__(self, start: int, slab: np.ndarray) -> None:
        """Take a slab."""
        assert start == self.next, "slabs must come in order, each once"
        self.next = start + slab.shape[-1]
        self.slabs.append(slab)

    @property
    def whole(self) -> np.ndarray:
        """All slabs side by side."""
        return np.concatenate(self.slabs, axis=-1)


def padded(volume: np.ndarray, before: int, after: list[int], mode: str = "reflect") -> np.ndarray:
    """Pad all axes position by position: mirror, then repeat the last mirrored value."""
    for axis, n in enumerate(volume.shape[1:], start=1):
        p = np.arange(-before, n + after[axis - 1])
        if mode == "reflect":
            p = np.where(p < 0, -p, np.where(p >= n, 2 * (n - 1) - p, p))
        volume = np.take(volume, np.clip(p, 0, n - 1), axis=axis)
    return volume


def whole_result(network: nn.Module, volume: np.ndarray, halo: int, multiple: int = 1) -> np.ndarray:
    """Run the network once on the volume padded by the halo."""
    shape = volume.shape[1:]
    halo = -(-halo // multiple) * multiple
    after = [-(-(n + halo) // multiple) * multiple - n for n in shape]
    with torch.no_grad():
        out = network(torch.from_numpy(padded(volume, halo, after))[None])[0].numpy()
    return out[(slice(None), *(slice(halo, halo + n) for n in shape))]


@pytest.mark.parametrize(
    "shape, block",
    [((61,), 7), ((23, 31), (9, 8)), ((13, 17, 19), (6, 17, 5)), ((9, 1, 14), 64), ((5, 6, 7), 1)],
)
def test_tiled_equals_whole(shape, block):
    """A local network gives the whole volume's values whatever the block, odd sizes and thin axes too."""
    network, volume, out = local_network(len(shape)), volume_of(shape), Collector()
    tiles = blocks.plan_exact(shape, block, halo=4)
    blocks.run_exact(network, volume, tiles, out)
    np.testing.assert_allclose(out.whole, whole_result(network, volume, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "shape, block", [((70,), 12), ((37, 45), (16, 10)), ((18, 23, 21), (8, 32, 12)), ((3, 2), 8)]
)
def test_strided_network_tiled_equals_whole(shape, block):
    """Tile origins on multiples of 4 make a stride-4 network see the whole volume's grid."""
    network, volume, out = StridedNetwork(len(shape)), volume_of(shape), Collector()
    tiles = blocks.plan_exact(shape, block, halo=12, multiple=4)
    assert all(o % 4 == 0 and s % 4 == 0 for t in tiles for o, s in zip(t.origin, t.size, strict=True))
    blocks.run_exact(network, volume, tiles, out)
    np.testing.assert_allclose(out.whole, whole_result(network, volume, 12, 4), rtol=1e-5, atol=1e-6)


def test_a_halo_too_small_is_noticed():
    """With one voxel of halo missing the result differs, so equality above means something."""
    network, volume, out = local_network(2), volume_of((23, 31)), Collector()
    blocks.run_exact(network, volume, blocks.plan_exact((23, 31), 8, halo=3), out)
    assert np.abs(out.whole - whole_result(network, volume, 4)).max() > 1e-4


def test_halo_that_stops_at_the_edge_keeps_the_networks_own_padding():
    """beyond_edge=False: tiled equals the network run on the bare volume with its zero padding."""
    network, volume, out = local_network(3), volume_of((13, 11, 9)), Collector()
    blocks.run_exact(network, volume, blocks.plan_exact((13, 11, 9), 5, 4, beyond_edge=False), out)
    with torch.no_grad():
        expected = network(torch.from_numpy(volume)[None])[0].numpy()
    np.testing.assert_allclose(out.whole, expected, rtol=1e-5, atol=1e-6)


def test_network_that_crops_by_itself():
    """A function may return the core alone (valid convolutions)."""
    torch.manual_seed(0)
    network, volume, out = nn.Conv2d(2, 1, 9), volume_of((20, 22)), Collector()
    blocks.run_exact(network, volume, blocks.plan_exact((20, 22), 7, 4), out)
    np.testing.assert_allclose(out.whole, whole_valid(network, volume), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected the tile"):
        blocks.run_exact(lambda x: x[..., 1:], volume, blocks.plan_exact((20, 22), 7, 4), out)


def whole_valid(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    """Run a net of radius 4 that crops by itself on the padded volume."""
    with torch.no_grad():
        return network(torch.from_numpy(padded(volume, 4, [4, 4]))[None])[0].numpy()


@pytest.mark.parametrize("mode", ["reflect", "replicate", "zeros"])
def test_extract_equals_padding_the_whole_volume(mode):
    """Each padded tile is a cut of the volume padded at once, by NumPy's own padding."""
    shape, volume = (11, 14, 12), volume_of((11, 14, 12))
    numpy_mode = {"reflect": "reflect", "replicate": "edge", "zeros": "constant"}[mode]
    whole = np.pad(volume, [(0, 0)] + [(8, 10)] * 3, mode=numpy_mode)
    for tile in blocks.plan_exact(shape, (4, 8, 5), halo=7, multiple=2):
        cut = tuple(slice(o + 8, o + 8 + s) for o, s in zip(tile.origin, tile.size, strict=True))
        np.testing.assert_array_equal(blocks.extract(volume, tile, mode), whole[(slice(None), *cut)])
        core = blocks.extract(volume, tile, mode)[(slice(None), *tile.crop)]
        np.testing.assert_array_equal(core, volume[(slice(None), *tile.core)])


def test_thin_axes_are_repeated():
    """An axis of one voxel is replicated; one of three is mirrored, then its far value repeated."""
    (tile,) = blocks.plan_exact((1, 3), 8, halo=4)
    out = blocks.extract(np.array([[[10.0, 11.0, 12.0]]]), tile)
    assert out.shape == (1, 9, 11) and out.dtype == np.float32
    np.testing.assert_array_equal(out[0, 0], [12, 12, 12, 11, 10, 11, 12, 11, 10, 10, 10])
    np.testing.assert_array_equal(out[0], np.tile(out[0, 0], (9, 1)))


lengths = st.integers(1, 40)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), axes=st.integers(1, 3), multiple=st.sampled_from([1, 2, 3, 8]), beyond=st.booleans())
def test_cores_partition_the_volume(data, axes, multiple, beyond):
    """Exact cores cover every voxel once, origins and sizes are aligned, reads and crops agree."""
    shape = data.draw(st.tuples(*[lengths] * axes))
    block = data.draw(st.tuples(*[lengths] * axes))
    halo = data.draw(st.tuples(*[st.integers(0, 20)] * axes))
    tiles = blocks.plan_exact(shape, block, halo, multiple, beyond_edge=beyond)
    seen = np.zeros(shape, dtype=int)
    index = np.arange(seen.size, dtype=np.float32).reshape(1, *shape)
    for tile in tiles:
        seen[tile.core] += 1
        out = blocks.extract(index, tile)
        assert out.shape[1:] == tile.size
        assert all(
            o % multiple == 0 and s % multiple == 0 for o, s in zip(tile.origin, tile.size, strict=True)
        )
        np.testing.assert_array_equal(out[(0, *tile.crop)], index[(0, *tile.core)])
        assert all(c.stop - c.start <= max(b, multiple) for c, b in zip(tile.core, block, strict=True))
    assert (seen == 1).all()
    assert [t.index for t in tiles] == list(range(len(tiles)))


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(lengths, lengths),
    block=st.tuples(st.integers(8, 30), st.integers(8, 30)),
    overlap=st.integers(0, 7),
    multiple=st.sampled_from([1, 2, 4]),
    margin=st.integers(0, 20),
)
def test_blended_blocks_cover_and_sum_to_one(shape, block, overlap, multiple, margin):
    """Blended tiles cover the volume, share the overlap, are equal in size, and keep a constant."""
    tiles = blocks.plan_blended(shape, block, overlap, multiple, margin=margin)
    assert len({t.size for t in tiles}) == 1
    starts = sorted({t.origin[1] for t in tiles})
    first = -((margin + multiple - 1) // multiple * multiple)
    assert starts[0] == first or -first >= tiles[0].size[1]
    assert all(tiles[0].size[1] - (b - a) >= min(overlap, tiles[0].size[1] - multiple)
               for a, b in itertools.pairwise(starts))  # fmt: skip
    out = Collector()
    blocks.run_blended(lambda x: x, np.full((1, *shape), 3.25, np.float32), tiles, out)
    assert out.whole.shape == (1, *shape)
    np.testing.assert_allclose(out.whole, 3.25, rtol=1e-6)


def test_blending_reproduces_a_linear_function():
    """Tiles that agree are returned as they are: a linear ramp, two channels."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in (20, 17, 40)], indexing="ij")
    ramp = np.stack([2.0 * z - y + 0.5 * x, 1.0 + x]).astype(np.float32)
    out = Collector()
    blocks.run_blended(lambda t: t, ramp, blocks.plan_blended((20, 17, 40), 12, 4, margin=2), out)
    np.testing.assert_allclose(out.whole, ramp, atol=1e-5)


def test_blending_smooths_the_steps_between_tiles():
    """Tiles that disagree by an offset leave no jump as high as abutting tiles leave."""
    shape, levels = (1, 200), itertools.cycle([0.0, 1.0])
    out = Collector()
    tiles = blocks.plan_blended(shape, (1, 40), (0, 16))
    blocks.run_blended(lambda t: t * 0 + next(levels), np.zeros((1, *shape), np.float32), tiles, out)
    assert np.abs(np.diff(out.whole[0, 0])).max() < 0.3


def test_blend_weights_are_the_stated_gaussian():
    """Separable, symmetric, sigma = block/8, floor 1e-3 on each axis."""
    w = blocks.blend_weights((17, 32))
    assert w.shape == (17, 32) and w.dtype == np.float32
    np.testing.assert_allclose(w, w[::-1, ::-1])
    line = np.maximum(np.exp(-((np.arange(17) - 8) ** 2) / (2 * (17 / 8) ** 2)), 1e-3)
    np.testing.assert_allclose(w[:, 16] / w[8, 16], line, rtol=1e-6)
    assert w.min() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("blended", [False, True])
def test_streaming_keeps_memory_bounded(blended):
    """A volume four times as long needs no more memory: slabs are handed out and planes are forgotten."""
    peaks = []
    for length in (256, 1024):
        shape = (24, 24, length)

        def read(slices):
            return np.zeros((1, *(s.stop - s.start for s in slices)), np.float32)

        planes = []
        tiles = (
            blocks.plan_blended(shape, (24, 24, 32), 8)
            if blended
            else blocks.plan_exact(shape, (24, 24, 16), 4)
        )
        run = blocks.run_blended if blended else blocks.run_exact
        tracemalloc.start()
        run(lambda x: x, read, tiles, lambda s, slab, got=planes: got.extend(range(s, s + slab.shape[-1])))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert planes == list(range(length))
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 24 * 24 * 1024 * 4 / 2


def test_planes_are_read_once_through_the_cache():
    """PlaneCache asks the file for each plane once and holds only those of the open tiles."""
    volume, asked, held = volume_of((8, 9, 60)), [], []

    def read_plane(i):
        asked.append(i)
        held.append(len(cache._planes))
        return volume[..., i]

    cache, out = blocks.PlaneCache(read_plane), Collector()
    blocks.run_exact(lambda x: x, cache, blocks.plan_exact((8, 9, 60), (4, 4, 10), 3), out)
    np.testing.assert_array_equal(out.whole, volume)
    assert asked == list(range(60)) and max(held) <= 16


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("blended", [False, True])
def test_ranks_share_the_work(world_size, blended):
    """Each tile is on one rank, the ranks' planes partition the axis, their union equals one process."""
    shape, volume = (10, 11, 50), volume_of((10, 11, 50))
    network = local_network(3)
    tiles = blocks.plan_blended(shape, 12, 4) if blended else blocks.plan_exact(shape, 12, 4)
    run = blocks.run_blended if blended else blocks.run_exact
    whole, parts, indices = Collector(), [], []
    run(network, volume, tiles, whole)
    for rank in range(world_size):
        start, stop = blocks.planes_of(tiles, rank, world_size)
        indices += [t.index for t in blocks.share(tiles, rank, world_size)]
        out = Collector(start)
        run(network, volume, tiles, out, planes=(start, stop))
        assert out.next == stop
        parts += out.slabs
    assert sorted(indices) == list(range(len(tiles)))
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole.whole)


def test_a_share_alone_writes_its_own_planes():
    """Running only a rank's exact tiles hands out its planes and nothing before them."""
    volume, out = volume_of((6, 40)), Collector(20)
    tiles = blocks.share(blocks.plan_exact((6, 40), 10, 2), 1, 2)
    blocks.run_exact(lambda x: x, volume, tiles, out)
    np.testing.assert_array_equal(out.whole, volume[..., 20:])


def test_an_interrupted_run_goes_on_with_the_planes_it_lacks():
    """Planes already written need not be computed again; the rest comes out bit for bit the same."""
    volume, network = volume_of((12, 64)), local_network(2)
    tiles = blocks.plan_blended((12, 64), 16, 6)
    whole, rest = Collector(), Collector(29)
    blocks.run_blended(network, volume, tiles, whole)
    blocks.run_blended(network, volume, tiles, rest, planes=(29, 64))
    np.testing.assert_array_equal(rest.whole, whole.whole[..., 29:])


@pytest.mark.parametrize("budget", [2**24, 2**26, 2**28, 2**31])
def test_choose_block_stays_within_the_budget(budget):
    """Peak of the chosen plan stays within the budget and does not waste it."""
    shape, halo, per_voxel, slab = (300, 200, 250), 12, 40, 16
    block = blocks.choose_block(shape, per_voxel, halo, budget, 4, slab_bytes_per_voxel=slab)
    tiles = blocks.plan_exact(shape, block, halo, 4)
    peak = per_voxel * max(np.prod(t.size) for t in tiles) + slab * 300 * 200 * block[-1]
    assert peak <= budget
    assert all(b % 4 == 0 for b in block)
    work = sum(np.prod(t.size) for t in tiles)
    half = blocks.choose_block(shape, per_voxel, halo, budget / 2, 4, slab_bytes_per_voxel=slab)
    assert work <= sum(np.prod(t.size) for t in blocks.plan_exact(shape, half, halo, 4))


def test_choose_block_takes_all_when_it_fits_and_respects_limits():
    """The whole volume is one block when memory allows; a wanted block is an upper bound; blended works."""
    assert blocks.choose_block((30, 40), 4, 5, 1e9) == (30, 40)
    assert blocks.choose_block((300, 400), 4, 5, 1e9, limit=64) == (64, 64)
    block = blocks.choose_block((300, 400), 100, 0, 1e6, 4, overlap=16)
    assert min(block) > 16 and np.prod(block) * 100 <= 1e6


def test_budget_too_small_says_what_to_raise():
    """One line with the flag, the budget and what the smallest block takes."""
    with pytest.raises(UserError, match=r"--max_memory .* is too small .* raise --max_memory"):
        blocks.choose_block((100, 100, 100), 400, 52, 2**20, 4)


def test_out_of_memory_halves_the_block_three_times():
    """The block shrinks until it fits; after three halvings the error is a DataError; others pass."""
    tried = []

    def run(block):
        tried.append(block)
        if block[0] > 32:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return block

    assert blocks.retry_smaller(run, (128, 64), multiple=4) == (32, 16)
    assert tried == [(128, 64), (64, 32), (32, 16)]
    with pytest.raises(DataError, match="out of memory"):
        blocks.retry_smaller(run, (1024, 1024))
    with pytest.raises(RuntimeError, match="shapes"):
        blocks.retry_smaller(lambda b: (_ for _ in ()).throw(RuntimeError("shapes differ")), (8,))
    assert blocks.halve((5, 16), 4) == (4, 8)


def test_wrong_plans_are_refused():
    """Overlap not below the block, an empty axis, too few lengths, a negative halo, an unknown mode."""
    with pytest.raises(UserError, match="overlap"):
        blocks.plan_blended((40, 40), 16, 16)
    with pytest.raises(UserError, match="block"):
        blocks.plan_exact((40, 40), 0, 2)
    for arguments in [((0, 4), 4, 1), ((4, 4), (4,), 1), ((4, 4), 4, -1)]:
        with pytest.raises(ValueError):
            blocks.plan_exact(*arguments)
    with pytest.raises(ValueError, match="mode"):
        blocks.extract(np.zeros((1, 4)), blocks.plan_exact((4,), 4, 1)[0], "wrap")
