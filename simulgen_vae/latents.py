"""What the latents of a trained VAE hold: PCA map, traversals, active units, KL of every dimension.

B batch, T frames, M nodes, V fields, n latents (z first, then the levels from the deepest).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import figures
from common.cli import option
from common.errors import UserError
from common.figure_style import house_look, new_figure, save
from common.files import require_writable, write_json
from common.log import get_logger
from common.run import MachineOptions, machine
from simulgen_vae.config_tools import EvaluateConfig
from simulgen_vae.evaluate import open_for, rows_of
from simulgen_vae.gallery import draw_kl, draw_latents
from simulgen_vae.losses import kl_residual, kl_standard
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.model_files import Surrogate, read_surrogate
from simulgen_vae.scoring import ACTIVE_VARIANCE

REACH = 2.0  # of a traversal, in standard deviations of the latent over the data
BATCH = 64


@dataclass(frozen=True)
class LatentConfig:
    """The latents of a trained surrogate."""

    model: str = option(
        "results/simulgen_vae/train", "deliverable of a training, or its run folder", aliases=("model_path",)
    )
    data: str = option("", "the data set it was trained on; none = as the training named it")
    part: str = option("train", "samples to look at", choices=("train", "validation", "test"))
    traversals: int = option(6, "latents to traverse, those that move the field most")
    steps: int = option(5, "pictures from -2 to +2 standard deviations")
    frame: int = option(-1, "frame of the pictures; -1 = the last")
    field: int = option(0, "number of the field that the pictures show")

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.traversals < 1 or self.steps < 2 or self.field < 0:
            raise ValueError(
                f"--traversals {self.traversals} --steps {self.steps} --field {self.field}: expected 1 or "
                "more, 2 or more, 0 or more"
            )


@dataclass(frozen=True)
class LatentStatistics:
    """Of every latent, each [n]: KL in nats, mean and variance of the posterior mean over samples."""

    kl: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def active(self) -> torch.Tensor:
        """Which latents vary by more than 0.01, bool [n] (Burda et al. 2016)."""
        return self.variance > ACTIVE_VARIANCE


@torch.no_grad()
def latent_statistics(vae: HierarchicalVae, c: torch.Tensor) -> LatentStatistics:
    """Return the statistics of all latents over the coefficients c [N, C, T]."""
    kl, means = [], []
    for part in c.split(BATCH):
        out = vae(part)
        levels = kl_residual(out.shift, out.step, out.prior_logvar).flatten(1)
        kl.append(torch.cat([kl_standard(out.mu, out.logvar), levels], dim=1))
        means.append(torch.cat([out.mu, out.h.flatten(1)], dim=1))
    found = torch.cat(means).double()
    return LatentStatistics(torch.cat(kl).double().mean(0), found.mean(0), found.var(0, correction=0))


@torch.no_grad()
def traverse(surrogate: Surrogate, statistics: LatentStatistics, latent: int, steps: int) -> torch.Tensor:
    """Return physical fields [steps, T, M, V] along one latent, the others at their means."""
    vae = surrogate.vae
    reach = REACH * float(statistics.variance[latent].sqrt())
    latents = statistics.mean.float().repeat(steps, 1)
    latents[:, latent] += torch.linspace(-reach, reach, steps)
    size = vae.shape.latent_dim_end
    return surrogate.basis.decode(vae.decode(latents[:, :size], vae.levels_of(latents[:, size:])))


def strongest(surrogate: Surrogate, statistics: LatentStatistics, count: int) -> list[int]:
    """Return the latents that move the field most between -2 and +2 standard deviations, strongest first."""
    spans = []
    for latent in range(len(statistics.mean)):
        low, high = traverse(surrogate, statistics, latent, 2)
        spans.append(float((high - low).norm()))
    return sorted(range(len(spans)), key=lambda k: -spans[k])[:count]


def latent_name(vae: HierarchicalVae, latent: int) -> str:
    """Return z[i], or h_l[i] with the level l from 1, deepest first."""
    size, each = vae.shape.latent_dim_end, vae.shape.latent_dim
    if latent < size:
        return f"z[{latent}]"
    level, place = divmod(latent - size, each)
    return f"h_{level + 1}[{place}]"


def draw_traversals(
    path: Path, surrogate: Surrogate, statistics: LatentStatistics, config: LatentConfig
) -> Path:
    """Draw one row of pictures (regular grids) or one panel of curves a latent."""
    chosen = strongest(surrogate, statistics, config.traversals)
    grid = surrogate.config["grid_shape"]
    values = {
        k: traverse(surrogate, statistics, k, config.steps)[:, config.frame, :, config.field].numpy()
        for k in chosen
    }
    name, unit = (surrogate.config[key][config.field] for key in ("field_names", "units"))
    label = f"{name} ({unit or '-'})"
    kind = "difference" if min(float(v.min()) for v in values.values()) < 0 else "heat"
    limits = figures.colour_limits(list(values.values()), kind)
    columns = config.steps if grid else 1
    figure, axes = new_figure(len(chosen), columns, panel=(2.0, 1.5) if grid else (5.0, 1.8))
    shares = np.linspace(-REACH, REACH, config.steps)
    with house_look():
        for row, latent in zip(axes, chosen, strict=True):
            name = latent_name(surrogate.vae, latent)
            if grid:
                for ax, picture, share in zip(row, values[latent], shares, strict=True):
                    look = {"kind": kind, "limits": limits, "title": f"{name} {share:+.1f} sd"}
                    look |= {"x_label": "x (cells)", "z_label": "y (cells)"}
                    look["value_label"] = label if ax is row[-1] else ""
                    figures.section(ax, picture.reshape(grid), **look)
                    ax.label_outer()
            else:
                nodes = np.arange(values[latent].shape[1])
                lines = {f"{s:+.1f} sd": (nodes, v) for s, v in zip(shares, values[latent], strict=True)}
                figures.curves(row[0], lines, x_label="node", y_label=label, title=name)
    return save(figure, path)


def report(surrogate: Surrogate, statistics: LatentStatistics) -> dict[str, Any]:
    """Return what latents.json holds."""
    names = [latent_name(surrogate.vae, k) for k in range(len(statistics.mean))]
    rows = zip(names, statistics.kl.tolist(), statistics.variance.tolist(), strict=True)
    return {
        "active_units": int(statistics.active.sum()),
        "num_latents": len(names),
        "kl_nats": float(statistics.kl.sum()),
        "latents": [
            {"name": name, "kl_nats": kl, "variance": v, "active": v > ACTIVE_VARIANCE}
            for name, kl, v in rows
        ],
    }


def analyze(config: LatentConfig, options: MachineOptions, out: Path) -> dict[str, Any]:
    """Write latents.json, pca.png, kl.png and traversals.png into `out`; return the first one's content.

    Raises:
        UserError: `out` cannot be written, or there is no such frame or field.
        DataError: the model or the data cannot be used.
    """
    require_writable(out)
    with machine(options):
        surrogate = read_surrogate(config.model)
        data = open_for(surrogate, EvaluateConfig(model=config.model, data=config.data))
        try:
            if not -data.num_frames <= config.frame < data.num_frames or config.field >= data.num_fields:
                raise UserError(
                    f"--frame {config.frame} --field {config.field}: expected a frame below "
                    f"{data.num_frames} and a field below {data.num_fields}"
                )
            numbers = getattr(surrogate.split, config.part)
            rows = rows_of(surrogate, data, numbers, options.seed)
            statistics = latent_statistics(surrogate.vae, rows.c)
            found = report(surrogate, statistics)
            if not options.dry_run:
                write_json(out / "latents.json", found)
                draw_latents(out / "pca.png", surrogate.vae, rows, data.param_names)
                draw_kl(out / "kl.png", surrogate.vae, rows.c)
                draw_traversals(out / "traversals.png", surrogate, statistics, config)
        finally:
            data.close()
    get_logger().info(
        f"{found['active_units']} of {found['num_latents']} latents active, {found['kl_nats']:.1f} nats"
    )
    return found
