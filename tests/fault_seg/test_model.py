"""The networks of fault_seg: sizes, locality, padding, published names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.noise import gaussian
from common.optim import parameter_count
from fault_seg.angles import normal_from_angles, outer_from_normal
from fault_seg.layers import Conv3d, side_by_side
from fault_seg.model import (
    HighResolutionNet,
    build_network,
    fuse_batch_norm,
    pad_to_multiple,
    receptive_radius,
    refine_input,
    rgt_calibration,
)

LOCAL = ("fault", "dhr")


def noise(*shape: int, index: int = 0) -> Tensor:
    """Return standard normal noise of `shape`."""
    return gaussian(shape, 0, "test_model", index)


def lively(network: nn.Module) -> nn.Module:
    """Return the network with the statistics of noise in its normalisations: signals do not die out."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.momentum = 1.0
    with torch.no_grad():
        network.train()(noise(2, network.in_channels, 32, 16, 16, index=1))
    return network.eval()


@pytest.mark.parametrize(
    ("network", "kind", "count"),
    [
        ("hr", "infer", 1_554_337),
        ("hr", "refine", 1_556_065),
        ("mtl", "infer", 14_481_061),
        ("mtl", "refine", 14_492_009),
        ("unet", "infer", 1_460_289),
    ],
)
def test_parameter_counts(network: str, kind: str, count: int):
    """Every layout has exactly the number of parameters that its description states."""
    assert parameter_count(build_network(network, kind)) == count


def test_parameters_of_each_stage():
    """The stages of hr have the sizes of its table."""
    net = HighResolutionNet()
    counts = {name: parameter_count(stage) for name, stage in net.named_children()}
    assert counts == {
        "stem": 1_976,
        "down1": 67_632,
        "down2": 705_920,
        "squeeze1": 1_584,
        "up1": 62_352,
        "squeeze0": 208,
        "up0": 6_944,
        "fault_head": 3_689,
        "dhr_head": 3_689,
        "orient_head": 12_998,
        "context8": 332_160,
        "context16": 332_160,
        "context_mix8": 4_224,
        "context_mix4": 1_056,
        "rgt_head": 17_745,
    }


def test_published_layout_has_its_names_and_shapes():
    """State dicts under the published names load strictly; refine is told by its five stems."""
    infer, refine = build_network("mtl", "infer"), build_network("mtl", "refine")
    shapes = {name: tuple(value.shape) for name, value in refine.state_dict().items()}
    assert len(infer.state_dict()) == 194 and len(shapes) == 214
    assert tuple(infer.state_dict()["encoder1.conv0.c.0.weight"].shape) == (16, 1, 3, 3, 3)
    assert shapes["encoder1.conv0.c.0.weight"] == (16, 20, 3, 3, 3)
    assert shapes["decoder_fault.decoder2.convd.c.0.weight"] == (256, 64, 3, 3, 3)
    assert shapes["decoder_rgt.out.2.weight"] == (1, 16, 1, 1, 1)
    assert shapes["decoder_fault.out.2.weight"] == (16, 16, 3, 3, 3)
    assert shapes["subdecoder_fault_dip.conv.3.c.0.weight"] == (16, 32, 3, 3, 3)
    assert shapes["subdecoder_fault_semantic.out.0.c.0.weight"] == (1, 16, 3, 3, 3)
    assert shapes["input1.0.c.0.weight"] == (4, 1, 3, 3, 3)
    assert not any(name.startswith("input") for name in infer.state_dict())
    partial = build_network("mtl", "infer", ("dhr",))
    weights = {k: v for k, v in infer.state_dict().items() if k.startswith(("encoder", "decoder_dhr"))}
    partial.load_state_dict(weights, strict=True)


def test_mtl_outputs():
    """Mtl gives probabilities and ungated angles in 0..1; the gated ones are their products with fsem."""
    with torch.no_grad():
        out = build_network("mtl", "refine")(noise(1, 5, 16, 20, 17))
    assert {key: tuple(v.shape) for key, v in out.items()} == dict.fromkeys(
        ("rgt", "dhr", "fault_logit", "fsem", "dip", "strike", "fdip", "fstrike"), (1, 1, 16, 20, 17)
    )
    torch.testing.assert_close(out["fsem"], torch.sigmoid(out["fault_logit"]))
    torch.testing.assert_close(out["fdip"], out["dip"] * out["fsem"])
    assert out["strike"].min() > 0 and out["strike"].max() < 1


@pytest.mark.parametrize("heads", [("fault",), ("dhr",), ("rgt",), ("fault", "dhr", "rgt")])
def test_hr_outputs_of_each_head(heads: tuple[str, ...]):
    """Only the chosen heads give outputs, in float32 on the input grid; delta starts at zero."""
    net = build_network("hr", "infer", heads).eval()
    with torch.no_grad():
        out = net(noise(1, 1, 16, 32, 16))
    channels = {"fault_logit": 1, "orient": 6, "dhr": 1, "delta": 1}
    keys = {"fault": ("fault_logit", "orient"), "dhr": ("dhr",), "rgt": ("delta",)}
    expected = {k: (1, channels[k], 16, 32, 16) for head in heads for k in keys[head]}
    assert {k: tuple(v.shape) for k, v in out.items()} == expected
    assert all(v.dtype == torch.float32 for v in out.values())
    assert "delta" not in out or not out["delta"].any()
    assert "fault_logit" not in out or 0.03 < torch.sigmoid(out["fault_logit"]).mean() < 0.2


def measured_radius(net: nn.Module, output: str) -> int:
    """Return the largest distance along z at which the input moves the output, by gradients."""
    x = noise(1, net.in_channels, 160, 8, 8).double().requires_grad_()
    values = net.double()(x)[output]
    radius = 0
    for j in range(72, 72 + net.multiple):
        (grad,) = torch.autograd.grad(values[:, :, j].sum(), x, retain_graph=True)
        seen = grad[0].abs().sum((0, 2, 3)).nonzero()
        radius = max(radius, int((seen - j).abs().max()))
    return radius


def test_receptive_radius_is_the_measured_one():
    """The radius computed from the layers equals the one seen in gradients, for each output."""
    net = lively(build_network("hr", "infer", LOCAL))
    measured = {output: measured_radius(net, output) for output in ("fault_logit", "orient", "dhr")}
    assert measured == {"fault_logit": 52, "orient": 53, "dhr": 52}
    assert receptive_radius(net) == receptive_radius(net, ("fault",)) == 53
    assert receptive_radius(net, ("dhr",)) == 52
    assert receptive_radius(build_network("hr")) == 53
    unet = lively(build_network("unet"))
    assert receptive_radius(unet) == measured_radius(unet, "fault_logit")
    assert receptive_radius(build_network("mtl")) is None


def tile_error(net: nn.Module, axis: int, halo: int) -> float:
    """Return the largest difference of outputs between tiles with that halo and the whole volume."""
    shape = [1, 1, 8, 12, 8]
    shape[axis] = 176
    x = noise(*shape)
    error = 0.0
    with torch.no_grad():
        whole = net(x)
        for first, last in ((0, 24), (72, 96), (144, 176)):
            start, stop = max(0, first - halo), min(176, last + halo)
            tile = net(x.narrow(axis, start, stop - start))
            for key, value in whole.items():
                inner = tile[key].narrow(axis, first - start, last - first)
                error = max(error, (inner - value.narrow(axis, first, last - first)).abs().max().item())
    return error


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_tiles_with_halo_equal_the_whole(axis: int):
    """A tile with the receptive radius around it has the whole volume's values; one with less has not."""
    net = lively(build_network("hr", "infer", LOCAL))
    halo = -(-receptive_radius(net) // net.multiple) * net.multiple
    assert tile_error(net, axis, halo) <= 1e-5
    assert tile_error(net, axis, 16) > 1e-4


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 9), (16, 16, 16), (2, 5, 33), (23, 18, 75)])
@pytest.mark.parametrize("multiple", [4, 16])
def test_padding_works_for_any_size(size: tuple[int, int, int], multiple: int):
    """Any size >= 1 is padded to the multiple, by reflection where it can be, and cropped back unchanged."""
    x = noise(1, 2, *size)
    padded, crop = pad_to_multiple(x, multiple)
    assert all(
        n % multiple == 0 and 0 <= n - m < multiple for n, m in zip(padded.shape[2:], size, strict=True)
    )
    assert torch.equal(padded[crop], x)
    n = size[2]
    if n > 1 and n % multiple:
        mirror = n - 2 if -n % multiple < n else n - 1
        assert torch.equal(padded[crop[0], crop[1], crop[2], n], x[..., mirror])


@pytest.mark.parametrize("network", ["hr", "unet"])
def test_thin_volumes_pass_through(network: str):
    """A 2-D line, one voxel wide, gives finite outputs of its own size."""
    net = build_network(network).eval()
    padded, crop = pad_to_multiple(noise(1, 1, 21, 1, 30), net.multiple)
    with torch.no_grad():
        out = {k: v[crop] for k, v in net(padded).items()}
    assert all(v.shape[2:] == (21, 1, 30) and v.isfinite().all() for v in out.values())
    with pytest.raises(ValueError, match="multiples"):
        net(noise(1, 1, 21, 1, 30))


def test_gradients_are_finite_in_bf16():
    """One training step at 32^3 under bf16 autocast gives finite gradients to every parameter."""
    net = build_network("hr").train()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(noise(1, 1, 32, 32, 32))
    assert all(v.dtype == torch.float32 for v in out.values())
    nn.init.normal_(net.rgt_head[1].weight)
    sum((v - 1).square().mean() for v in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_coarsest_branch_stays_in_float32():
    """Autocast never reaches the 1/16 branch."""
    net = build_network("hr").eval()
    seen = []
    net.context16.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(noise(1, 1, 16, 16, 16))
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.parametrize(
    ("stride", "dilation", "size"), [(1, 1, 8), (2, 1, 8), (1, 2, 6), (1, 4, 10), (2, 1, 7)]
)
def test_split_convolution_is_the_convolution(stride: int, dilation: int, size: int):
    """The fast path for small grids gives values and gradients of the plain convolution.

    A gradient of a weight sums hundreds of terms; the tolerance follows the largest value of each tensor.
    """
    fast = Conv3d(5, 6, 3, stride, padding=dilation, dilation=dilation)
    slow = nn.Conv3d(5, 6, 3, stride, padding=dilation, dilation=dilation)
    slow.load_state_dict(fast.state_dict())
    results = []
    for layer in (fast, slow):
        x = noise(1, 5, size, 6, 7).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
def test_two_layers_at_once_are_two_layers(bias: bool):
    """Two layers run as one convolution give the outputs and gradients of each alone."""
    first, second = (Conv3d(4, n, 3, padding=1, bias=bias) for n in (3, 2))
    together, apart = noise(1, 4, 8, 6, 7).requires_grad_(), noise(1, 4, 8, 6, 7).requires_grad_()
    found, expected = side_by_side(first, second, together), (first(apart), second(apart))
    for outputs in (found, expected):
        (outputs[0].square().sum() + outputs[1].sin().sum()).backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.grad, apart.grad, rtol=0, atol=1e-5 * float(apart.grad.abs().max()))


@pytest.mark.parametrize("kind", ["infer", "refine"])
def test_folded_normalisation_changes_nothing(kind: str):
    """Folding BatchNorm into the convolutions keeps every output, and the trained network as it was."""
    net = lively(build_network("hr", kind)).double()
    nn.init.normal_(net.rgt_head[1].weight)
    x = noise(1, net.in_channels, 16, 16, 32).double()
    with torch.no_grad():
        expected, found = net(x), fuse_batch_norm(net)(x)
    assert sum(isinstance(m, nn.BatchNorm3d) for m in net.modules()) > 20
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4)


def volumes(n: int = 16) -> dict[str, Tensor]:
    """Return five volumes: tilted layers in time 0..1 and one fault plane, dip 60, strike 30 degrees."""
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32),) * 3, indexing="ij")
    time = z + 0.2 * x - 0.1 * y
    normal = normal_from_angles(torch.tensor(60.0), torch.tensor(30.0))
    distance = normal[0] * (z - n / 2) + normal[1] * (y - n / 2) + normal[2] * (x - n / 2)
    fsem = (distance.abs() < 1).float()
    out = {
        "rgt": (time - time.min()) / (time.max() - time.min()),
        "dhr": torch.sin(time),
        "fsem": fsem,
        "fdip": fsem * 60 / 180,
        "fstrike": fsem * 30 / 180,
    }
    return {key: value[None, None] for key, value in out.items()}


def test_refine_input_channels():
    """The nine channels are the time anomaly in voxels, dhr, a bounded logit and the gated outer product."""
    five = volumes()
    x = refine_input(**five)
    n = 16
    _, y, xs = torch.meshgrid(*(torch.arange(n, dtype=torch.float32),) * 3, indexing="ij")
    tilt = 0.2 * xs - 0.1 * y
    torch.testing.assert_close(x[0, 0], tilt - tilt.mean(), atol=1e-4, rtol=0)
    assert torch.equal(x[:, 1:2], five["dhr"])
    torch.testing.assert_close(x[:, 2].abs().max(), torch.tensor(99.0).log() / 4)
    outer = outer_from_normal(normal_from_angles(torch.tensor(60.0), torch.tensor(30.0)))
    fault = five["fsem"][0, 0] > 0
    torch.testing.assert_close(x[0, 3:, fault], outer[:, None].expand(-1, int(fault.sum())))
    assert not x[0, 3:, ~fault].any()


def test_refine_input_of_a_tile_is_the_tile_of_the_whole():
    """With the whole volume's calibration a tile gets the values that the whole volume has there."""
    five = volumes()
    tile = {key: value[:, :, 5:13, 2:9] for key, value in five.items()}
    calibration = rgt_calibration(five["rgt"], five["fsem"])
    found = refine_input(**tile, calibration=calibration, first_z=5)
    torch.testing.assert_close(found, refine_input(**five)[:, :, 5:13, 2:9])


def test_refine_input_does_not_see_the_strike_wrap():
    """(d, s) and (180 - d, s + 180) give the same channels; strike 179.9 and 0.1 nearly the same."""
    five = volumes()
    other = {**five, "fdip": five["fsem"] * 120 / 180, "fstrike": five["fsem"] * 210 / 180}
    torch.testing.assert_close(refine_input(**five), refine_input(**other), atol=1e-5, rtol=0)
    fsem = torch.ones_like(five["fsem"])
    wrapped = [
        refine_input(**{**five, "fsem": fsem, "fdip": fsem * dip / 180, "fstrike": fsem * strike / 180})[
            :, 3:
        ]
        for dip, strike in ((110.0, 179.9), (70.0, 0.1))
    ]
    assert (wrapped[0] - wrapped[1]).abs().max() < 0.01


def test_refine_starts_near_its_input():
    """Fault logit and dhr of a refine network are corrections to those of its input."""
    net = build_network("hr", "refine").eval()
    for head in (net.fault_head, net.dhr_head):
        nn.init.zeros_(head[1].weight)
        nn.init.zeros_(head[1].bias)
    five = volumes()
    with torch.no_grad():
        out = net(refine_input(**five))
    torch.testing.assert_close(torch.sigmoid(out["fault_logit"]), five["fsem"].clamp(0.01, 0.99))
    torch.testing.assert_close(out["dhr"], five["dhr"])


@pytest.mark.parametrize(
    ("network", "kind", "heads"),
    [
        ("vnet", "infer", ("fault",)),
        ("hr", "train", ("fault",)),
        ("hr", "infer", ()),
        ("hr", "infer", ("fault", "salt")),
        ("hr", "refine", ("fault",)),
        ("unet", "refine", ("fault", "dhr", "rgt")),
        ("unet", "infer", ("dhr",)),
    ],
)
def test_wrong_choices_are_usage_errors(network: str, kind: str, heads: tuple[str, ...]):
    """A layout, kind or head that does not exist is refused by name."""
    with pytest.raises(UserError, match="expected|needs|is for"):
        build_network(network, kind, heads)
