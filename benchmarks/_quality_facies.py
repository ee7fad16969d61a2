"""The cases of facies_gan for quality.py."""

from __future__ import annotations

from benchmarks._quality import Case, Figure, Places, Rival

WELLS = ("1 well", "8 wells", "64 wells")
SEAM = "seam ratio at 8 wells, distance to the reference's own"


def _snesim(key: str) -> Places:
    """Return where SNESIM's figure stands: measured if it is installed, else the known one."""
    return tuple((name, f"scores/{name}/{key}") for name in ("snesim", "snesim, published"))


def _apart(what: str, place: str, most: float, *own: tuple[str, str], unit: str = "-") -> Figure:
    """Return the distance of a figure to another one, `own` (name, place), the first that is there."""
    return Figure(what, place, unit, most, rivals=own, distance=True)


def _entropy(cells: int) -> Figure:
    key = f"entropy_{cells}"
    what = f"entropy {cells} cells from data, distance to SNESIM's"
    return _apart(what, f"scores/ours/{key}", 0.15, *_snesim(key), unit="bits")


def _drawn(wells: str) -> tuple[Figure, ...]:
    """Return what realisations through drawn wells have to keep, and their small bodies."""
    methods = f"blending/wells={wells}/methods"
    bodies = (("paste", f"{methods}/paste/small_bodies"),)
    return (
        Figure(f"data honoured, {wells}", f"{methods}/ours/hard_match", "share", least=1.0),
        Figure(f"data right before injection, {wells}", f"{methods}/ours/hard_match_before", "share"),
        Figure(f"bodies below 8 cells, {wells}", f"{methods}/ours/small_bodies", "each", rivals=bodies),
    )


SECTIONS = (
    "facies_gan/make_data.py --kind sections --num_sections 48 --height 96 --width 120 --seed 7 "
    "--with_seismic --out {work}/train",
    "facies_gan/make_data.py --kind sections --num_sections 64 --height 96 --width 120 --seed 7 "
    "--with_seismic --out {work}/all",
)
STREBELLE = "facies/strebelle_250.sgems", "facies/strebelle_wells9.dat"
BESIDE_SNESIM = {
    "proportion": "proportion error",
    "variogram": "variogram MAE / sill",
    "connectivity": "connectivity MAE",
    "mph2": "2 x 2 patterns, JSD",
    "mph3": "3 x 3 patterns, JSD",
    "mph4": "4 x 4 patterns, JSD",
    "mph4_stride2": "4 x 4 patterns, stride 2, JSD",
    "mph4_stride4": "4 x 4 patterns, stride 4, JSD",
}
HELD_WELLS = "held/evaluation.json:calibration/ours"
HELD_OUT = "--reference {work}/all --first_section 48 --how_many 8"
FACIES = {
    "facies_gan, sections": Case(
        (
            *SECTIONS,
            "facies_gan/train.py --input_path {work}/train --preset quick --cache_dir {work}/cache "
            "--out {work}/run",
            f"facies_gan/evaluate.py --model_path {{work}}/run {HELD_OUT} --blending_count 8 "
            "--baselines tgs --out {work}/report",
        ),
        rivals=(
            Rival("connectivity MAE", "tgs"),
            Rival("4 x 4 patterns, JSD", "tgs"),
            Rival(SEAM, "tgs"),
            Rival(SEAM, "paste"),
        ),
        figures=(
            *(figure for wells in WELLS for figure in _drawn(wells)),
            *(
                Figure(
                    f"data right before injection, {wells}, beside the row's most frequent facies",
                    f"blending/wells={wells}/methods/ours/hard_match_before",
                    "share",
                    rivals=(("row's most frequent", "row_guess_accuracy"),),
                    over=0.0,
                )
                for wells in WELLS
            ),
            Figure(
                "entropy 1 cell from data",
                "scores/ours/entropy_1",
                "bits",
                rivals=(("paste", "scores/paste/entropy_1"),),
                times=1.0,
            ),
        ),
    ),
    "facies_gan, seismic": Case(
        (
            *SECTIONS,
            *(
                line.format(**{"work": "{work}", "flag": flag, "name": name})
                for name, flag in (("plain", ""), ("seismic", "--use_seismic "))
                for line in (
                    "facies_gan/train.py --input_path {work}/train --preset quick --num_iter 200 "
                    "--group_iter_factor 1 1.5 0.625 {flag}--cache_dir {work}/cache --out {work}/{name}",
                    f"facies_gan/evaluate.py --model_path {{work}}/{{name}} {HELD_OUT} --blending_count 0 "
                    "--baselines tgs --no_figures --out {work}/of_{name}",
                )
            ),
            "facies_gan/evaluate.py --model_path {work}/plain --reference {work}/all --first_section 48 "
            "--how_many 16 --holdout_wells 1 --blending_count 0 --no_figures --out {work}/held",
        ),
        figures=(
            Figure(
                "most likely section with seismic, cells right",
                "scores/ours/cell_accuracy",
                "share",
                rivals=(("same training without", "of_plain/evaluation.json:scores/ours/cell_accuracy"),),
                over=0.0,
            ),
            Figure(
                "probabilities at wells held out, log score",
                f"{HELD_WELLS}/log_score",
                "bits",
                rivals=(("global proportions", f"{HELD_WELLS}/proportions_log_score"),),
            ),
            Figure("probabilities at wells held out, calibration error", f"{HELD_WELLS}/ece"),
        ),
        results="of_seismic/results.json",
        document="of_seismic/evaluation.json",
    ),
    "facies_gan, Strebelle": Case(
        (
            "facies_gan/train.py --training_image {data}/facies/strebelle_250.sgems --preset quick "
            "--cache_dir {work}/cache --out {work}/run",
            "facies_gan/evaluate.py --model_path {work}/run --hard_data {data}/facies/strebelle_wells9.dat "
            "--how_many 20 --baselines tgs snesim --out {work}/report",
        ),
        values={
            "proportion error": (0.015, None),
            "variogram MAE / sill": (0.040, None),
            "connectivity MAE": (0.085, None),
            "2 x 2 patterns, JSD": (0.00122, None),
            "4 x 4 patterns, JSD": (0.010, None),
            SEAM: (0.3, None),
        },
        figures=(
            Figure("hard data honoured", "scores/ours/hard_match", "share", least=1.0),
            Figure("isolated data cells", "scores/ours/isolated", "share", 0.0),
            Figure("3 x 3 patterns, JSD", "scores/ours/mph3", "bits", 0.0028),
            *(
                Figure(f"{what}, beside SNESIM", f"scores/ours/{key}", rivals=_snesim(key), times=1.0)
                for key, what in BESIDE_SNESIM.items()
            ),
            _apart(
                "Gamma, distance to the image's", "scores/ours/gamma", 0.1, ("the image", "reference/gamma")
            ),
            Figure("bodies", "scores/ours/bodies", "each", rivals=(("the image", "reference/bodies"),)),
            Figure("mean entropy", "scores/ours/entropy", "bits", least=0.7),
            *(_entropy(cells) for cells in (1, 2, 4, 6, 10, 20)),
            _apart(
                "seam ratio at 64 points, distance to the reference's own",
                "blending/wells=64 points/methods/ours/seam_ratio",
                0.3,
                ("the reference", "blending/wells=64 points/methods/reference/seam_ratio"),
            ),
            *(figure for wells in WELLS for figure in _drawn(wells)),
            Figure(
                "copied patches, median match",
                "scores/ours/copy_median",
                "share",
                rivals=(("the image's own, 95 % below", "scores/ours/copy_band_95"),),
                times=1.0,
            ),
            Figure("ANODI ratio", "scores/ours/anodi_ratio", rivals=_snesim("anodi_ratio")),
        ),
        seconds={"facies_gan/train.py": 900},
        needs=STREBELLE,
    ),
}
