"""The cases of quality.py."""

from __future__ import annotations

from benchmarks._quality import ABOVE, BELOW, Case, Figure, Limits, Rival
from benchmarks._quality_facies import FACIES

# fault_seg

FAULT_VALUES: Limits = {
    "fault average precision": (None, 0.75),
    "fault IoU, tuned threshold": (None, 0.50),
    "fault Tol-IoU@2, tuned threshold": (None, 0.83),
    "fault normal, median error": (8.0, None),
    "fault normal, median error over all fault voxels": (8.0, None),
    "cubes whose AP is above coherence's": (None, 1.0),
}
FAULT_RATIOS: Limits = {"geological time MAE": (0.9, None), "horizon error, median": BELOW}


def _faults(key: str, what: str, unit: str, *rivals: str) -> Figure:
    places = tuple((name, f"methods/{name}/mean/{key}") for name in rivals)
    return Figure(what, f"methods/ours/mean/{key}", unit, rivals=places)


PSNR = Figure(
    "denoised image PSNR, 4 dB above the input's",
    "methods/ours/mean/dhr_psnr_db",
    "dB",
    rivals=(("input", "methods/input/mean/dhr_psnr_db"),),
    over=4.0,
)
FAULT_FIGURES = (
    _faults("dhr_correlation", "denoised image correlation", "-", "input"),
    _faults("dhr_bandwidth_ratio", "denoised image bandwidth over the input's", "-"),
    _faults("rgt_ssim", "geological time SSIM", "-", "flat"),
    _faults("horizon_p90_samples", "horizon error, 90 % below", "samples", "flat"),
    _faults("rgt_share_increasing", "geological time, cells increasing downwards", "share"),
    _faults("hd95_voxels", "fault HD95", "voxels", "coherence"),
    _faults("ece", "fault probability, calibration error", "-", "coherence"),
    Figure("fault ODS", "headline_at_0.5/ods"),
    Figure("fault OIS", "headline_at_0.5/ois"),
    _faults("angle_mean_deg", "fault normal, mean error", "degrees", "constant"),
    _faults("dip_error_deg", "fault dip error", "degrees", "constant"),
    _faults("strike_error_deg", "fault strike error", "degrees", "constant"),
)


def _made(preset: str, cubes: int = 12) -> str:
    """Return the command of new cubes: no training of the shipped weights has seen any of this seed."""
    sizes = f"--ntrain 8 --nvalid {cubes} --seed 2"
    return f"fault_seg/make_data.py --preset {preset} {sizes} --out {{work}}/data"


def _fault_preset(preset: str) -> Case:
    """Return the case of another preset of the generator."""
    return Case(
        (
            _made(preset),
            "fault_seg/evaluate.py --data {work}/data --no_figures --out {work}/report",
        ),
        figures=FAULT_FIGURES,
    )


FAULT_SEG = {
    "fault_seg": Case(
        (
            _made("standard", 24),
            "fault_seg/evaluate.py --data {work}/data --robustness 6 --out {work}/report",
        ),
        values=FAULT_VALUES,
        ratios=FAULT_RATIOS,
        figures=(PSNR, *FAULT_FIGURES),
    ),
    **{f"fault_seg, {preset}": _fault_preset(preset) for preset in ("wu2019", "rgm", "mixed")},
    "fault_seg, refinement": Case(
        (
            "fault_seg/make_data.py --preset standard --out {work}/data",
            "fault_seg/train.py --preset refine --optimizer muon --data {work}/data --steps 1600 --crop 32 "
            "--batch_train 2 --eval_every 1600 --nvalid 4 --threads 1 --out {work}/run",
            "fault_seg/evaluate.py --model {work}/run/last.ckpt --data {work}/data --refine_iters 3 "
            "--out {work}/report",
        ),
        ratios={
            f"{measure}, {passes}": limits
            for measure, limits in (
                ("refined fault IoU, p >= 0.5", ABOVE),
                ("refined geological time MAE", BELOW),
                ("refined image correlation", ABOVE),
            )
            for passes in ("1 pass", "3 passes")
        },
    ),
}

# velocity_inversion

FITTING = "--train_data_path {work}/data/train --val_data_path {work}/data/val"
TESTING = "--train_data_path {work}/data/train --test_data_path {work}/data/test"
FAMILIES = ("layered_increasing", "layered_free", "curved_increasing", "curved_free")
INSIDE = Figure("cells inside the 0.9 band", "coverage/measured", "share", 0.96, 0.86)
CHANGES = (
    "noise, 20 dB",
    "noise, 10 dB",
    "10 % of traces dead",
    "30 % of traces dead",
    "a shot missing",
    "peak frequency -10 %",
    "peak frequency +10 %",
    "gain 0.8",
    "gain 1.2",
)
COMPARED = ("mean section", "depth trend", "InversionNet")


def _equal_time(seed: int) -> Case:
    """Return the case of our network beside InversionNet after the same CPU seconds."""
    return Case(
        (
            "velocity_inversion/make_data.py --preset bench --out {work}/data",
            "velocity_inversion/evaluate.py --preset bench --equal_time 600 "
            "--train_data_path {work}/data/train --val_data_path {work}/data/val "
            "--test_data_path {work}/data/test --refine 20 --refine_samples 10 --misfit_samples 10 "
            f"--robustness{f' --seed {seed}' if seed else ''} --out {{work}}/report",
        ),
        values={
            "samples whose misfit refinement lowered, 10 samples": (None, 1.0),
        },
        ratios={
            "velocity MAE": BELOW,
            "velocity MAPE": BELOW,
            "velocity MAE, flip averaged": (1.01, None),
        },
        rivals=(
            Rival("velocity MAE", "InversionNet", 0.75),
            Rival("velocity MAE, refined, 10 samples", "the network alone"),
            *(Rival("velocity MAPE", name, 1.0 if name == "mean section" else None) for name in COMPARED),
        ),
        figures=(
            INSIDE,
            Figure("cells inside the 0.9 band, noise 20 dB below", "coverage/noise, 20 dB", "share"),
            *(
                Figure(
                    f"velocity MAE over that of clean gathers, {change}, {name}",
                    f"mae_over_clean/{change}/{name}",
                )
                for change in CHANGES
                for name in ("ours", "InversionNet")
            ),
            *(
                Figure(
                    f"velocity MAE, {family.replace('_', ' ')}",
                    f"by_family/ours/{family}/mae/mean",
                    "m/s",
                    rivals=(("InversionNet", f"by_family/InversionNet/{family}/mae/mean"),),
                )
                for family in FAMILIES
            ),
            *(
                Figure(
                    f"{what}, beside {name}",
                    f"methods/ours/{key}/mean",
                    unit,
                    rivals=((name, f"methods/{name}/{key}/mean"),),
                )
                for key, what, unit in (("rmse", "velocity RMSE", "m/s"), ("ssim", "SSIM", "-"))
                for name in COMPARED
            ),
        ),
    )


VELOCITY = {
    "velocity_inversion, equal time": _equal_time(0),
    "velocity_inversion, equal time, seed 1": _equal_time(1),
    "velocity_inversion, two members": Case(
        (
            "velocity_inversion/make_data.py --preset bench --out {work}/data",
            f"velocity_inversion/train.py --preset bench --num_models 2 {FITTING} --threads 1 "
            "--out {work}/run",
            f"velocity_inversion/train.py --stage diffusion --diffusion_steps 180 --model_path {{work}}/run "
            f"{FITTING} --threads 1 --out {{work}}/run",
            f"velocity_inversion/evaluate.py --model_path {{work}}/run {TESTING} --diffusion_samples 10 "
            "--out {work}/report",
        ),
        ratios={
            "validation MAPE of weighted members": BELOW,
            "velocity MAE within 5 columns of a well, 10 samples": BELOW,
        },
        figures=(
            INSIDE,
            Figure("spread of posterior samples, 10 samples", "diffusion_m_s/spread", "m/s", least=1.0),
        ),
    ),
    "velocity_inversion, refinement": Case(
        ("velocity_inversion/evaluate.py --bench refine --out {work}/report",),
        ratios={
            "velocity MAE after 20 iterations from smoothed truth": (0.60, None),
            "velocity MAE after 50 iterations from smoothed truth": (0.45, None),
        },
    ),
    "velocity_inversion, eight samples": Case(
        ("velocity_inversion/evaluate.py --bench overfit --out {work}/report",),
        rivals=(
            Rival("velocity MAE on 8 training samples", "mean section", 0.3),
            Rival("velocity MAE on 8 training samples", "InversionNet", None),
        ),
    ),
}

# voxel_ode

VOXEL_ODE = {
    "voxel_ode": Case(
        (
            "voxel_ode/make_data.py --preset demo --workers 1 --out {work}/raw",
            "voxel_ode/prep_data.py --input_root {work}/raw --out_root {work}/data --patch_size 32 24 24 "
            "--num_test 2 --num_val 1",
            "voxel_ode/train.py --preset demo --prepped_root {work}/data --threads 1 --out {work}/run",
            "voxel_ode/evaluate.py --prepped_root {work}/data --ckpt_path {work}/run/checkpoints/best.pt "
            "--pressure_sweeps 64 --baselines copy ridge1 ridge3 linear upwind fno --fno_minutes 2 "
            "--ablate flux --calibrate --out {work}/report",
            "voxel_ode/optimise.py --sim_path {work}/data/test/v2.4_0001.prepped.h5 "
            "--ckpt_path {work}/run/checkpoints/best.pt --iterations 3 --candidates 1 --lr 0.15 "
            "--out {work}/optimised.json",
        ),
        ratios={"temperature RMSE of the rollout": BELOW},
        rivals=(
            Rival("temperature RMSE of the rollout", "copy", 0.40),
            Rival("temperature RMSE of the rollout", "fno"),
            Rival("pressure RMSE of the rollout", "copy", 0.65),
            Rival("pressure RMSE of the rollout", "ridge1", None),
        ),
        figures=(
            Figure("temperature inside the 80 % band", "calibration/coverage/T", "share"),
            Figure("pressure inside the 80 % band", "calibration/coverage/P", "share"),
            Figure(
                "energy after the search for rates, predicted gain", "optimised.json:predicted_gain", "share"
            ),
            Figure(
                "energy after the search for rates, simulated gain",
                "optimised.json:simulated_gain",
                "share",
                least=0.0,
            ),
        ),
    ),
}

CASES = FACIES | FAULT_SEG | VELOCITY | VOXEL_ODE
