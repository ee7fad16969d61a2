"""Preparation of a user's data: import, check of every sample, analysis, check of the physics, cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import require_writable, write_json
from common.log import get_logger
from common.run import BasicOptions, describe_run
from velocity_inversion.analysis import analyze
from velocity_inversion.check_physics import check_physics, corrected
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.dataset import Preprocessing, ShotDataset
from velocity_inversion.geometry import FILE_NAME
from velocity_inversion.preprocess import band_pass
from velocity_inversion.segy_shots import import_shots, read_shots, survey_of
from velocity_inversion.sources import Source, open_source

ENERGY_SAMPLES = 20


def prepare(config: PrepConfig, options: BasicOptions, out: Path) -> dict[str, Any]:
    """Do what the flags say; write prep.json to `out` and return it.

    Every sample is read and checked on the way into the cache that `train` uses with the same flags.

    Raises:
        UserError: `out` cannot be written, or holds imported data and may not be replaced.
        DataError: the data cannot be used; the message names file, found and expected.
    """
    require_writable(out)
    if config.segy:
        if options.dry_run:
            surveys = [survey_of(read_shots(name), config, name) for name in config.segy]
            return {"samples": len(surveys), "survey": surveys[0].to_dict()}
        if (out / FILE_NAME).exists() and not options.overwrite:
            raise UserError(f"{out}: holds imported data; add --overwrite or choose another --out")
        import_shots(config, out)
    source = open_source(out if config.segy else config.data_path)
    result: dict[str, Any] = {"samples": len(source), "survey": source.survey.to_dict()}
    if options.dry_run:
        return result
    if config.analyze:
        result["analysis"] = analyze(source, out)
    if config.check_physics:
        checks = check_physics(source, config.check_physics)
        result["physics"] = [asdict(check) for check in checks]
        if config.update_geometry:
            target = _geometry_path(config, out)
            write_json(target, corrected(source.survey, checks).to_dict())
            get_logger().info(f"wrote {target}")
            source = open_source(out if config.segy else config.data_path)
            result["survey"] = source.survey.to_dict()
    preprocessing = Preprocessing(config.net_dt_s, config.bandpass_low_hz, config.bandpass_high_hz)
    kept = energy_kept(source, preprocessing)
    if kept is not None:
        result["energy_kept"] = kept
        get_logger().info(f"band-pass: {100 * kept:.1f} % of the energy kept")
    ShotDataset(source, preprocessing, cache_dir=config.cache_dir)
    result["net_interval_s"] = preprocessing.interval(source.survey)
    get_logger().info(
        f"{len(source)} samples checked; {preprocessing.length(source.survey)} samples at "
        f"{1000 * result['net_interval_s']:g} ms cached in {config.cache_dir}"
    )
    write_json(out / "prep.json", {**result, "run": describe_run("velocity_inversion", 0)})
    return result


def energy_kept(source: Source, preprocessing: Preprocessing) -> float | None:
    """Return the share of the gathers' energy that the band-pass keeps; None where it is open.

    Raises:
        UserError: a corner lies at or above the Nyquist frequency of the data.
    """
    low, high = preprocessing.bandpass_low_hz, preprocessing.bandpass_high_hz
    if not low and not high:
        return None
    before = after = 0.0
    for row in range(min(len(source), ENERGY_SAMPLES)):
        gathers, _ = source.read_gathers(row)
        before += float(np.square(gathers, dtype=np.float64).sum())
        filtered = band_pass(gathers, source.survey.dt_s, low, high)
        after += float(np.square(filtered, dtype=np.float64).sum())
    return after / before if before else 1.0


def _geometry_path(config: PrepConfig, out: Path) -> Path:
    """Return where the geometry of the data stands."""
    if config.segy:
        return out / FILE_NAME
    data = Path(config.data_path)
    folder = data.parent if data.is_file() else data
    return next(
        (p / FILE_NAME for p in (folder, folder.parent) if (p / FILE_NAME).exists()), folder / FILE_NAME
    )
