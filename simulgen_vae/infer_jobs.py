"""What a surrogate is asked for: predictions of inputs, draws of the prior, paths between samples, latents.

N trajectories, B batch, n latents, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.arrays import open_npy
from common.errors import DataError, UserError
from common.noise import gaussian
from simulgen_vae import ood
from simulgen_vae.config_infer import InferConfig
from simulgen_vae.graph import Model
from simulgen_vae.paths import existing_file
from simulgen_vae.queries import Queries, read_queries


@dataclass(eq=False)
class Job:
    """What is asked of the model: where coefficients come from, and what they are called.

    Attributes:
        sample_id: N names.
        queries: inputs, or None when latents are decoded.
        latents: rows -> latents [B, n], or None when inputs are predicted.
        decode: latents -> coefficients.
    """

    sample_id: tuple[str, ...]
    queries: Queries | None = None
    latents: Callable[[Sequence[int]], torch.Tensor] | None = None
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)


def make_job(config: InferConfig, model: Model, seed: int) -> Job:
    """Return what the flags ask for."""
    count = model.surrogate.vae.shape.num_latents
    if config.sample:
        ids = tuple(f"prior{i}" for i in range(config.sample))

        def noise(rows: Sequence[int]) -> torch.Tensor:
            return torch.stack([gaussian((count,), seed, "prior", i) for i in rows])

        return Job(ids, latents=noise, decode=model.surrogate.vae.sample)
    if config.interpolate:
        return _interpolation(config, model)
    if config.latents:
        stored = open_npy(existing_file(config.latents, "--latents", f"npy [N, {count}]"))
        if stored.ndim != 2 or stored.shape[1] != count or stored.dtype.kind != "f":
            raise DataError(f"{config.latents}: {stored.dtype} {stored.shape}, expected numbers [N, {count}]")

        def read(rows: Sequence[int]) -> torch.Tensor:
            return torch.from_numpy(np.asarray(stored[list(rows)], dtype=np.float32))

        return Job(tuple(map(str, range(len(stored)))), latents=read, decode=model.decode)
    model.require_graph()
    queries = read_queries(model.surrogate, config.params, config.images, config.image_suffix)
    return Job(queries.sample_id, queries)


def _interpolation(config: InferConfig, model: Model) -> Job:
    stored = ood.stored_latents(model.surrogate, model.path)
    if stored is None:
        raise DataError(
            f"{model.path.parent / ood.LATENT_FILES[0]}: no such file, --interpolate needs the latents of "
            "the training data beside the model; restore its folder"
        )
    if max(config.ends) >= len(stored):
        raise UserError(f"--interpolate {config.interpolate}: expected samples 0..{len(stored) - 1}")
    first, last = (torch.from_numpy(stored[k]) for k in config.ends)
    path = torch.stack([slerp(first, last, t) for t in np.linspace(0, 1, config.num_points)]).float()
    ids = tuple(f"{config.ends[0]}to{config.ends[1]}_{k}" for k in range(config.num_points))
    return Job(ids, latents=lambda rows: path[list(rows)], decode=model.decode)


def slerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Return the point at `share` of the great circle from a to b, [n]; lengths change evenly (White 2016).

    sin((1 - t) w)/sin w a + sin(t w)/sin w b, w the angle between them; straight where they are parallel.
    """
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-4:
        return (1 - share) * a + share * b
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (weights[0] * a + weights[1] * b) / torch.sin(angle)


class Checks:
    """How far queries are from the training's inputs.

    Args:
        config: of the inference.
        model: the model.
        job: the queries; their parameters are looked at here and now when strange ones are refused.

    Raises:
        DataError: --on_ood refuse, and a row of parameters is unlike those of the training.
    """

    HEADER = "sample,param_distance,param_limit,outside,latent_distance,latent_limit,flag"

    def __init__(self, config: InferConfig, model: Model, job: Job) -> None:
        self.refuse = config.on_ood == "refuse"
        self.names = model.config["param_names"]
        self.params = self.latents = None
        if job.queries is None:
            return
        self.params = ood.parameter_cloud(model.surrogate)
        self.latents = ood.latent_cloud(model.surrogate, model.path)
        if self.refuse and self.params is not None:
            for first in range(0, len(job), 4096):
                rows = range(first, min(first + 4096, len(job)))
                self.lines(job.sample_id[first : rows.stop], job.queries.params[first : rows.stop], None)

    def lines(
        self, ids: Sequence[str], params: np.ndarray, latents: np.ndarray | None
    ) -> list[tuple[str, bool]]:
        """Return (line of ood.csv, is it flagged) of each row.

        Raises:
            DataError: a row is flagged and that is to be refused.
        """
        blank = np.full(len(ids), np.nan)
        near = self.params.distance(params) if self.params else blank
        beyond = self.params.outside(params) if self.params else np.zeros((len(ids), 0), dtype=bool)
        deep = self.latents.distance(latents) if self.latents and latents is not None else blank
        limits = [cloud.limit if cloud else np.nan for cloud in (self.params, self.latents)]
        found = []
        for k, name in enumerate(ids):
            out = [self.names[j] for j in np.flatnonzero(beyond[k])]
            flag = bool(near[k] > limits[0] or deep[k] > limits[1] or out)
            if flag and self.refuse:
                raise DataError(
                    f"sample {name}: unlike the training (distance {near[k]:.3g} of at most {limits[0]:.3g} "
                    f"in parameters, {deep[k]:.3g} of {limits[1]:.3g} in latents, outside the range: "
                    f"{' '.join(out) or 'none'}); correct it, or --on_ood warn"
                )
            text = f"{name},{near[k]:.6g},{limits[0]:.6g},{' '.join(out)},{deep[k]:.6g},{limits[1]:.6g}"
            found.append((f"{text},{int(flag)}", flag))
        return found
