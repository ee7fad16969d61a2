"""Exported weights: the same outputs as the model, nothing of the training, from any file of weights."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint, plain_weights
from common.errors import DataError, UserError
from common.noise import gaussian
from common.run import MachineOptions
from fault_seg import export as export_module
from fault_seg.config_tools import ExportConfig
from fault_seg.export import export, onnx_program
from fault_seg.infer import load, predict
from fault_seg.model import HEADS, build_network
from fault_seg.weight_files import read_weights
from tests.fault_seg.cases import QUICK, save_model

OPTIONS = MachineOptions()


def checkpoint(
    path: Path, network: str = "hr", kind: str = "infer", heads: tuple[str, ...] = HEADS
) -> tuple[Path, torch.nn.Module]:
    """Write the checkpoint of an untrained network as training does; return its path and the network."""
    torch.manual_seed(3)
    made = build_network(network, kind, heads)
    for part in made.modules():  # statistics of a trained network are neither 0 nor 1
        if isinstance(part, torch.nn.BatchNorm3d):
            part.running_mean.copy_(0.1 * gaussian(part.running_mean.shape, 0, "test_export mean"))
            part.running_var.mul_(1.7)
    content = Checkpoint(
        package="fault_seg",
        kind=kind,
        config={"network": network, "heads": list(heads), "lr": 0.002, "data": "somewhere/cubes"},
        normalization={},
        state_dict=plain_weights(made),
        training={"optimizer": {"moments": torch.zeros(100_000)}},
        step=12,
        epoch=3,
    )
    checkpoints.save(path, content)
    return path, made.eval()


def run(model: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Export with these paths."""
    return export(ExportConfig(str(model), str(output)), MachineOptions(**options))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_exports_predict_the_same(tmp_path: Path, suffix: str):
    """An exported file gives the outputs of the checkpoint, without its training state."""
    model, _ = checkpoint(tmp_path / "epoch=0.ckpt")
    made = run(model, tmp_path / f"x{suffix}")
    assert made["max_abs_difference"] <= 1e-4
    assert made["parameters"] == 1_554_337
    found = read_weights(tmp_path / f"x{suffix}")
    assert (found.kind, found.step, found.training, found.rng) == ("infer", 12, {}, [])
    assert found.config["lr"] == 0.002 and found.config["data"] == ""  # no path of who trained it
    assert (tmp_path / f"x{suffix}").stat().st_size < model.stat().st_size - 300_000
    image = gaussian((20, 24, 16), 0, "test_export image").numpy()
    expected = predict(load(model), image)
    for name, values in predict(load(tmp_path / f"x{suffix}"), image).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
    ("network", "kind", "heads"),
    [("hr", "refine", HEADS), ("hr", "infer", ("dhr",)), ("unet", "infer", ("fault",))],
)
def test_every_kind_exports(tmp_path: Path, network: str, kind: str, heads: tuple[str, ...]):
    """Refinement networks, single heads and the baseline export too, from an export as well."""
    model, _ = checkpoint(tmp_path / "m.ckpt", network, kind, heads)
    run(model, tmp_path / "a.safetensors")
    made = run(tmp_path / "a.safetensors", tmp_path / "b.pth")
    assert (made["network"], made["kind"], tuple(made["heads"])) == (network, kind, heads)


@pytest.mark.parametrize(
    ("network", "kind", "heads"),
    [
        ("hr", "infer", HEADS),
        ("hr", "infer", ("fault", "rgt")),
        ("hr", "refine", HEADS),
        ("mtl", "infer", HEADS),
        ("unet", "infer", ("fault",)),
    ],
)
def test_bare_weights_are_recognised(tmp_path: Path, network: str, kind: str, heads: tuple[str, ...]):
    """A state dict without configuration tells its layout, kind and heads by its tensors."""
    weights = plain_weights(build_network(network, kind, heads))
    torch.save(weights, tmp_path / "bare.pth")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 1}, tmp_path / "w.ckpt"
    )
    for name in ("bare.pth", "w.ckpt"):
        found = read_weights(tmp_path / name)
        assert (found.config["network"], found.kind, tuple(found.config["heads"])) == (network, kind, heads)
        assert all(torch.equal(found.state_dict[k], v) for k, v in weights.items())


def test_state_dict_of_a_checkpoint_as_pth(tmp_path: Path):
    """The state_dict of epoch=0.ckpt saved as .pth by anybody exports to equal weights."""
    model, network = checkpoint(tmp_path / "epoch=0.ckpt")
    document = torch.load(model, weights_only=True)
    torch.save(document["state_dict"], tmp_path / "anybody.pth")
    run(tmp_path / "anybody.pth", tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth").state_dict
    assert all(torch.equal(found[k], v) for k, v in network.state_dict().items())


def test_a_wrong_export_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A written file that computes something else is refused with the difference, and nothing is left."""
    model, _ = checkpoint(tmp_path / "m.ckpt")
    honest = export_module._without_training

    def spoiled(found: Checkpoint, weights: dict[str, torch.Tensor]) -> Checkpoint:
        weights["dhr_head.1.bias"] = weights["dhr_head.1.bias"] + 0.01
        return honest(found, weights)

    monkeypatch.setattr(export_module, "_without_training", spoiled)
    with pytest.raises(DataError, match=r"differ from .* by 0\.01"):
        run(model, tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


def test_onnx_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the optional libraries an ONNX export is a usage error with the pip line, before any work."""
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        run(tmp_path / "not even there.ckpt", tmp_path / "x.onnx")


@pytest.mark.parametrize(("network", "kind"), [("hr", "infer"), ("unet", "infer")])
def test_onnx_graph_is_free_in_size(network: str, kind: str):
    """What is handed to the ONNX exporter traces with free sizes and computes what the network computes."""
    made = build_network(network, kind, HEADS if network == "hr" else ("fault",)).eval()
    module, arguments = onnx_program(made)
    program = torch.export.export(
        module, arguments["args"], dynamic_shapes=arguments["dynamic_shapes"], strict=False
    )
    image = gaussian((1, 1, 48, 64, 32), 0, "test_export onnx")
    with torch.no_grad():
        expected = made(image)
        for name, values in zip(module.names, program.module()(image), strict=True):
            torch.testing.assert_close(values, expected[name], atol=1e-4, rtol=0)


def test_onnx_file(tmp_path: Path):
    """An ONNX file, run by its own runtime, agrees with the model (checked by the export itself)."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model, _ = checkpoint(tmp_path / "m.ckpt", heads=("fault", "dhr"))
    assert run(model, tmp_path / "x.onnx")["max_abs_difference"] <= 1e-4


def test_files_are_not_overwritten(tmp_path: Path):
    """An existing file needs --overwrite, the model itself is never replaced, a dry run writes nothing."""
    model, _ = checkpoint(tmp_path / "m.pth")
    before = model.read_bytes()
    (tmp_path / "x.pth").write_bytes(b"old")
    with pytest.raises(UserError, match="--overwrite"):
        run(model, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is the model itself"):
        run(model, model, overwrite=True)
    run(model, tmp_path / "y.pth", dry_run=True)
    run(model, tmp_path / "x.pth", overwrite=True)
    assert model.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pth", "x.pth"]


def test_bad_models(tmp_path: Path):
    """Weights of Keras, of another package, of no network, cut short or with code inside are bad data."""
    model, _ = checkpoint(tmp_path / "m.ckpt", heads=("dhr",))
    (tmp_path / "w.hdf5").write_bytes(b"x")
    (tmp_path / "cut.ckpt").write_bytes(model.read_bytes()[:-100])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "alien.pth")
    torch.save({"weight": 3}, tmp_path / "empty.pth")
    other = Checkpoint("voxel_ode", "infer", {}, {}, {"w": torch.zeros(2)})
    checkpoints.save(tmp_path / "other.ckpt", other)
    torch.save({"state_dict": Path("a")}, tmp_path / "code.pth")
    for name, words in (
        ("w.hdf5", r"expected weights as \.ckpt, \.pt, \.pth, \.safetensors.*export\.py"),
        ("cut.ckpt", "not a readable checkpoint"),
        ("alien.pth", "fit no network"),
        ("empty.pth", "no tensors"),
        ("other.ckpt", "package 'voxel_ode', expected 'fault_seg'"),
        ("code.pth", "refused"),
        ("none.ckpt", "no such checkpoint"),
    ):
        with pytest.raises(DataError, match=words):
            run(tmp_path / name, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(("model", "output"), [("", "x.pth"), ("m.ckpt", ""), ("m.ckpt", "x.h5")])
def test_flags(model: str, output: str):
    """Both files are named and the suffix is one of the three."""
    with pytest.raises(ValueError, match="--"):
        ExportConfig(model, output)


def test_files_are_as_readable_as_any(tmp_path: Path):
    """Exported files get the mode that the umask asks for, not one for their owner alone."""
    model = save_model(tmp_path / "m.ckpt", ("fault",))
    (tmp_path / "plain").write_text("")
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"x{suffix}"
        export(ExportConfig(model=str(model), output=str(path)), QUICK)
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_mean_of_models(tmp_path: Path):
    """Weights and running statistics are means in equal shares, the rest is --model's; others are refused."""
    first, second = (checkpoint(tmp_path / name)[0] for name in ("a.ckpt", "b.ckpt"))
    before, other = checkpoints.load(first), checkpoints.load(second)
    moved = {k: 1.02 * v if v.is_floating_point() else v for k, v in other.state_dict.items()}
    checkpoints.save(second, replace(other, state_dict=moved))
    mean = tmp_path / "mean.safetensors"
    export(ExportConfig(str(first), str(mean), average=(str(second),)), OPTIONS)
    for name, value in read_weights(mean).state_dict.items():
        wanted = before.state_dict[name] * (1.01 if value.is_floating_point() else 1)
        torch.testing.assert_close(value, wanted)
    with pytest.raises(UserError, match="is the model itself"):
        export(ExportConfig(str(first), str(mean), average=(str(mean),)), MachineOptions(overwrite=True))
    refine = checkpoint(tmp_path / "c.ckpt", kind="refine")[0]
    with pytest.raises(DataError, match="give models of one kind"):
        export(ExportConfig(str(first), str(tmp_path / "no.pth"), average=(str(refine),)), OPTIONS)
