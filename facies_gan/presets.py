"""Named sets of values to start a training from; users copy and edit these functions."""

from __future__ import annotations

from dataclasses import replace

from facies_gan.config import TrainingOptions


def paper() -> TrainingOptions:
    """Return the defaults with smooth pyramids: for a GPU of 8 GB and sections of 256 px."""
    return TrainingOptions(interpolator="neural")


def quick() -> TrainingOptions:
    """Return a training for a laptop CPU.

    Most iterations belong to the first group, whole images of up to 32 px: the coarse scales decide whether
    bodies connect. The finer groups see one window an iteration, which is enough for shapes: many small
    updates teach more than few large ones. The variogram term holds the contrast of the finer groups; in the
    first group, which sees the whole image, it broke channels. The connectivity term closes the gaps that the
    coarse scales leave, at the scales where a body is two cells wide and more.
    """
    return TrainingOptions(
        min_size=16,
        max_size=256,
        crop_size=128,
        stop_scale=4,
        num_parallel_scales=2,
        feature_growth=0,
        generator_steps=1,
        discriminator_steps=1,
        num_iter=400,
        coarse_iter_factor=7.5,
        group_iter_factor=(1.0, 1.5, 1.25),
        num_diversity_samples=2,
        well_loss_penalty=5.0,
        lr_schedule="linear",
        num_train_pyramids=64,
        group_batch_size=(1, 1, 1),
        group_diversity_samples=(2, 2, 1),
        group_crop_size=(128, 64, 128),
        group_lambda_diversity=(1.0, 0.1),
        group_lambda_variogram=(0.0, 20.0),
        group_lambda_connectivity=(0.0, 5.0, 0.0),
    )


def demo() -> TrainingOptions:
    """Return the training of `make demo`: about 90 seconds on two cores."""
    return replace(
        quick(), max_size=128, stop_scale=3, num_iter=100, coarse_iter_factor=6.25,
        group_iter_factor=(1.0, 2.25), group_crop_size=(128, 64), group_batch_size=(1, 1),
        lambda_diversity=0.5, lambda_variogram=20.0, well_loss_penalty=10.0,
        group_lambda_diversity=(), group_lambda_variogram=(), group_lambda_connectivity=(0.0, 2.0),
    )  # fmt: skip


def smoke() -> TrainingOptions:
    """Return a run of seconds, for tests."""
    return replace(
        quick(), max_size=64, stop_scale=2, num_iter=2, coarse_iter_factor=1.0, batch_size=2,
        group_iter_factor=(), group_batch_size=(),
    )  # fmt: skip


def strebelle() -> TrainingOptions:
    """Return a longer training for one binary image of channels of 250 x 250 cells."""
    return replace(quick(), num_iter=700)


TRAIN_PRESETS = {"paper": paper, "quick": quick, "demo": demo, "smoke": smoke, "strebelle": strebelle}
