"""Write a data set of the generator in either layout: sections, gathers, geometry, families, a card."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from joblib import Parallel, delayed

from common.errors import UserError
from common.files import (
    atomic_path,
    make_folder,
    remove_stale_temporaries,
    require_free_space,
    require_writable,
    write_json,
)
from common.log import get_logger
from common.noise import numpy_stream
from common.run import BasicOptions, describe_run
from velocity_inversion.arrays import from_km_s
from velocity_inversion.config_data import DataConfig
from velocity_inversion.geometry import FILE_NAME, Survey, challenge_survey, openfwi_survey, with_peak
from velocity_inversion.simulate import (
    Simulation,
    default_simulation,
    require_resolved,
    simulate,
    to_survey_rate,
)
from velocity_inversion.sources import FAMILIES_FILE, MODEL_FILE, open_source
from velocity_inversion.synthetic import family_of, make_section, mix

BATCH = 4  # models simulated together: the fixed costs of a call are shared
SPLITS = ("train", "val", "test")
GENERATOR_VERSION = 1
Row = tuple[np.ndarray, np.ndarray, str]  # section [Z, X] km/s, gathers [S, T, R], family


def survey_of(config: DataConfig) -> Survey:
    """Return the acquisition that the flags describe."""
    if config.layout == "openfwi":
        survey = openfwi_survey(config.num_shots or 5, config.num_receivers or 70)
    else:
        survey = challenge_survey(config.num_shots or 5, config.num_receivers or 31)
    return with_peak(survey, config.peak_hz, config.record_s)


def make_data(config: DataConfig, options: BasicOptions, out: Path, seed: int = 0) -> dict[str, Any]:
    """Write `train`, `val` and `test` below `out`; return what data_card.json says.

    Sample i of a split depends on the seed, the split and i alone.

    Raises:
        UserError: `out` cannot be written or holds a data set already, or the grid has no cell a wavelength.
        DataError: the disk is too small.
    """
    survey = survey_of(config)
    grid = survey.dx_m if config.native_grid else config.grid_m
    simulation = default_simulation(survey, grid)
    require_resolved(simulation)
    counts = dict(zip(SPLITS, (config.num_train, config.num_val, config.num_test), strict=True))
    require_writable(out)
    old = [out / split for split in SPLITS if (out / split).exists()]
    if old and not options.overwrite:
        raise UserError(f"{old[0]}: holds a data set; add --overwrite or choose another --out")
    each = 4 * survey.num_shots * survey.num_samples * survey.num_receivers
    require_free_space(out, config.total * each)
    if survey.layout == "folders" and config.native_grid:
        get_logger().info("simulating 1 m cells: about 43 CPU s a sample")
    if options.dry_run:
        return {"survey": survey.to_dict(), "counts": counts, "bytes_a_sample": each}
    remove_stale_temporaries(out)
    for folder in old:
        shutil.rmtree(folder)
    started, cpu = time.perf_counter(), 0.0
    ranges = {}
    for split, count in counts.items():
        if count:
            ranges[split], seconds = _write_split(out / split, split, count, config, simulation, seed)
            cpu += seconds
    card = {
        **describe_run("velocity_inversion", seed),
        "generator_version": GENERATOR_VERSION,
        "config": {**asdict(config), "families": list(config.families)},
        "counts": counts,
        "physics": f"constant-density acoustic, {simulation.grid_m:g} m cells, {simulation.dt_s:g} s",
        "gather_range": ranges,
        "cpu_s_a_sample": round(cpu / config.total, 4),
        "wall_s": round(time.perf_counter() - started, 2),
    }
    write_json(out / "data_card.json", card)
    return card


def _write_split(
    folder: Path, split: str, count: int, config: DataConfig, simulation: Simulation, seed: int
) -> tuple[list[float], float]:
    """Write one split; return (smallest and largest value of its gathers, CPU seconds of making it)."""
    survey = simulation.survey
    make_folder(folder)
    write_json(folder / FILE_NAME, survey.to_dict())
    jobs = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    work = Parallel(n_jobs=config.num_workers or os.cpu_count() or 1, return_as="generator")
    make = partial(_make_batch, config=config, simulation=simulation, seed=seed, split=split)
    results = cast(Iterator[Any], work(delayed(make)(list(indices)) for indices in jobs))
    seconds: list[float] = []
    rows = _rows(results, seconds)
    if survey.layout == "openfwi":
        families, extremes = _write_openfwi(folder, rows, count, config.samples_per_file, survey, split)
    else:
        families, extremes = _write_folders(folder, rows, count, survey, split)
    write_json(folder / FAMILIES_FILE, families)
    return [float(min(e[0] for e in extremes)), float(max(e[1] for e in extremes))], sum(seconds)


def _rows(batches: Iterator[tuple[list[Row], float]], seconds: list[float]) -> Iterator[Row]:
    """Yield the samples of all batches, noting the CPU seconds of each batch."""
    for rows, cpu in batches:
        seconds.append(cpu)
        yield from rows


def _make_batch(
    indices: Sequence[int], *, config: DataConfig, simulation: Simulation, seed: int, split: str
) -> tuple[list[Row], float]:
    """Return the samples of `indices` and the CPU seconds that they took."""
    torch.set_num_threads(1)
    started = time.process_time()
    survey = simulation.survey
    others = open_source(config.mix_from) if config.mix_from else None
    sections, labels = [], []
    for index in indices:
        family = family_of(config.families, index)
        kind = "layered" if family == "mix" else family
        section = make_section(survey.model_shape_zx, kind, seed, split, index, survey.v_bounds_km_s)
        vp, label = section.vp, section.family
        if family == "mix" and others is not None:
            vp, label = mix(vp, others.velocity(index % len(others)), seed, split, index), "mix"
        sections.append(vp)
        labels.append(label)
    with torch.no_grad():
        traces = simulate(torch.from_numpy(np.stack(sections)), simulation).numpy()
    gathers = to_survey_rate(traces, simulation).astype(np.float32)
    if config.noise_snr_db:
        for gather, index in zip(gathers, indices, strict=True):
            gather += band_noise(gather, survey, config.noise_snr_db, seed, split, index)
    return list(zip(sections, gathers, labels, strict=True)), time.process_time() - started


def band_noise(
    gathers: np.ndarray, survey: Survey, snr_db: float, seed: int, purpose: str, index: int
) -> np.ndarray:
    """Return noise [S, T, R] with the wavelet's own spectrum and the power of the signal less `snr_db`."""
    rng = numpy_stream(seed, f"gather noise {purpose}", index)
    spectrum = np.fft.rfft(rng.standard_normal(gathers.shape), axis=-2)
    ratio = np.fft.rfftfreq(gathers.shape[-2], survey.dt_s) / survey.wavelet.peak_hz
    spectrum *= (ratio**2 * np.exp(1 - ratio**2))[:, None]  # amplitude spectrum of a Ricker wavelet
    noise = np.fft.irfft(spectrum, n=gathers.shape[-2], axis=-2)
    power = np.sqrt(np.mean(gathers**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return (power * noise).astype(np.float32)


def _write_openfwi(
    folder: Path, rows: Iterator[Row], count: int, samples_per_file: int, survey: Survey, split: str
) -> tuple[dict[str, str], list[tuple[float, float]]]:
    families: dict[str, str] = {}
    extremes = []
    for number, first in enumerate(range(0, count, samples_per_file), start=1):
        size = min(samples_per_file, count - first)
        shapes = (
            (size, survey.num_shots, survey.num_samples, survey.num_receivers),
            (size, 1, *survey.model_shape_zx),
        )
        names = folder / f"data{number}.npy", folder / f"model{number}.npy"
        with atomic_path(names[0]) as data_path, atomic_path(names[1]) as model_path:
            data, models = (
                np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
                for path, shape in zip((data_path, model_path), shapes, strict=True)
            )
            for row in range(size):
                vp, gathers, label = next(rows)
                data[row], models[row, 0] = gathers, from_km_s(vp, survey)
                families[f"{number}_{row:04d}"] = label
                extremes.append((gathers.min(), gathers.max()))
                _tell(first + row + 1, count, split)
            data.flush()
            models.flush()
            del data, models
    return families, extremes


def _write_folders(
    folder: Path, rows: Iterator[Row], count: int, survey: Survey, split: str
) -> tuple[dict[str, str], list[tuple[float, float]]]:
    families: dict[str, str] = {}
    extremes = []
    for number, (vp, gathers, label) in enumerate(rows, start=1):
        sample = make_folder(folder / f"{split}_{number:05d}")
        for gather, name in zip(gathers, survey.source_files, strict=True):
            with atomic_path(sample / name) as path, path.open("wb") as file:
                np.save(file, gather)
        with atomic_path(sample / MODEL_FILE) as path, path.open("wb") as file:
            np.save(file, from_km_s(vp, survey).astype(np.float32))
        families[sample.name] = label
        extremes.append((gathers.min(), gathers.max()))
        _tell(number, count, split)
    return families, extremes


def _tell(done: int, count: int, split: str) -> None:
    if done == count or done % max(1, count // 5) == 0:
        get_logger().info(f"{split}: {done} of {count} samples")
