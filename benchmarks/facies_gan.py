"""What facies realisations and training iterations cost. Run: python benchmarks/facies_gan.py --bench_train.

Generation of 250 x 250 cells (the networks of the preset quick; weights do not change the cost) beside SNESIM
(when it is there: pip install scikit-mps) and beside a plain RGB pyramid with batch norm; tiles, long sets in
bounded memory; pyramids built together and from the cache. With --bench_train one training iteration a scale
beside a plain loop. Times are CPU seconds on one thread, the median of three or more, measured alternately
in one process. The tables and benchmarks/results/facies_gan.json say the same; what a call does not measure,
SNESIM where it is not installed, keeps its earlier result.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._child import ask, peak_bytes  # noqa: E402
from benchmarks._table import RESULTS, command_line, row, show, store_case  # noqa: E402
from benchmarks.facies_gan_peer import PlainPyramid, peer_iteration  # noqa: E402
from common import device as devices  # noqa: E402
from common.device import Precision, resolve_precision  # noqa: E402
from common.guard import Guard  # noqa: E402
from facies_gan.cache import PyramidCache, facies_pyramids  # noqa: E402
from facies_gan.config import RunOptions, TrainingOptions  # noqa: E402
from facies_gan.dataset import read_training_data  # noqa: E402
from facies_gan.images import write_label_png  # noqa: E402
from facies_gan.infer import realisations  # noqa: E402
from facies_gan.interpolators import InterpolatorConfig  # noqa: E402
from facies_gan.neural_smoother import fit  # noqa: E402
from facies_gan.presets import quick  # noqa: E402
from facies_gan.setup import Setup, prepare  # noqa: E402
from facies_gan.simulator import Conditioning, Simulator  # noqa: E402
from facies_gan.snesim import SnesimError, run_snesim  # noqa: E402
from facies_gan.synthetic import make_channels, make_section, synthetic_palette  # noqa: E402
from facies_gan.train import FaciesTask  # noqa: E402
from facies_gan.wells import WellSet  # noqa: E402

SIDE, BATCH, REPEATS = 250, 8, 3
PLAIN_SIDES = [12, 20, 34, 56, 92, 154, 256]
PLAIN_WIDTHS = [32] * 4 + [64] * 3
TRAIN_SIDES = [16, 22, 28, 36, 46, 60, 76, 100, 128]
SMOOTHER_STEPS, SMOOTHER_IMAGES = 12, 16
RESULT = RESULTS / "facies_gan.json"
CPU = torch.device("cpu")
Table = list[dict[str, Any]]


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Return the CPU time of one call, s."""
    began = time.process_time()
    function()
    return time.process_time() - began


def alternately(functions: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Return the median CPU time of each function, s: each warmed up once, then in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            seconds = cpu_seconds(function)
            if i:
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


def set_up(folder: Path, side: int, options: TrainingOptions) -> Setup:
    """Return the preparation of a training on a map of channels."""
    labels = make_channels(0, 0, side, side)
    image = folder / f"channels{side}.png"
    write_label_png(image, labels, synthetic_palette("channels").colors)
    changed = {**vars(options), "training_image": image, "cache_dir": folder / "cache"}
    with _quiet():
        return prepare(TrainingOptions(**changed), RunOptions(out=folder / "run", device="cpu"))


def new_task(setup: Setup, folder: Path) -> FaciesTask:
    """Return the task of a training."""
    return FaciesTask(setup, Guard(CPU), Precision(CPU, torch.float32), RunOptions(out=folder / "run"))


def new_simulator(folder: Path, device: torch.device = CPU, precision: Precision | None = None) -> Simulator:
    """Return the networks of the preset quick with their first weights."""
    setup = set_up(folder, SIDE, quick())
    task = new_task(setup, folder)
    for plan in setup.plans:
        task.start_phase(f"group {plan.index + 1}")
    return Simulator(task.card(), task.averaged_blocks(), device, precision)


def run_model(simulator: Simulator, count: int, wells: WellSet | None = None) -> list[np.ndarray]:
    """Return `count` realisations of 250 x 250 cells, a batch at a time."""
    conditioning = Conditioning(simulator.card, (SIDE, SIDE), wells)
    made = realisations(simulator, conditioning, list(range(count)), batch_size=BATCH)
    return [found.labels[0] for _, found in made]


def generation_rows(folder: Path) -> tuple[Table, Table, str]:
    """Measure realisations; return the rows beside the plain pyramid, those beside SNESIM, or why none."""
    simulator = new_simulator(folder)
    plain = PlainPyramid(PLAIN_SIDES, PLAIN_WIDTHS).eval()
    image = make_channels(0, 0, SIDE, SIDE)
    cells = np.random.default_rng(0).permutation(SIDE * SIDE)[:9]
    rows, cols = np.divmod(cells, SIDE)
    wells = WellSet.from_cells(rows, cols, image[rows, cols], np.arange(9), tuple("abcdefghi"))
    told: dict[str, Any] = {}

    def snesim() -> None:
        done = run_snesim(image, image.shape, BATCH, 2, wells=wells)
        told.setdefault("snesim", []).append(done.cpu_seconds / BATCH)

    functions: dict[str, Callable[[], Any]] = {
        "ours": lambda: run_model(simulator, BATCH, wells),
        "plain": torch.inference_mode()(lambda: plain.generate(BATCH, len(PLAIN_SIDES) - 1)),
    }
    reason = ""
    try:
        snesim()
        functions["snesim"] = snesim
    except SnesimError as error:
        reason = str(error)
    found = alternately(functions)
    ours = found["ours"] / BATCH
    table = [
        row("a realisation of 250 x 250", ours, "CPU s", 0.30),
        row("plain RGB pyramid of 256 x 256", found["plain"] / BATCH, "CPU s"),
        row("plain pyramid over ours", found["plain"] / found["ours"], "times", baseline="plain pyramid"),
    ]
    if "snesim" not in told:
        return table, [], reason
    theirs = statistics.median(told["snesim"][1:])
    beside = [
        row("ours in the same run, a realisation of 250 x 250", ours, "CPU s"),
        row("SNESIM, a realisation of 250 x 250", theirs, "CPU s"),
        row("SNESIM over ours", theirs / ours, "times", least=2.2, baseline="SNESIM"),
    ]
    return table, beside, ""


def gpu_rows(folder: Path) -> Table:
    """Measure realisations on a GPU, batch 64, bf16; nothing without one."""
    device = devices.resolve_device("auto")
    if not devices.is_cuda(device):
        return []
    simulator = new_simulator(folder, device, resolve_precision("bf16", device))
    conditioning = Conditioning(simulator.card, (SIDE, SIDE))
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for _ in realisations(simulator, conditioning, list(range(64)), batch_size=64):
            pass
        devices.synchronize(device)
        times.append((time.perf_counter() - began) / 64)
    return [row("a realisation on the GPU, batch 64, bf16", statistics.median(times[1:]), "s")]


def train_rows(folder: Path) -> Table:
    """Measure an iteration at the scales of the plain loop, and of each group of the preset quick at 128."""
    table = []
    plain = 0.0
    for scale in range(2, len(TRAIN_SIDES)):
        iteration = peer_iteration(TRAIN_SIDES, [32] * 4 + [64] * 4 + [128], scale)
        plain = alternately({"plain": iteration})["plain"]
        table.append(row(f"plain loop, scale of {TRAIN_SIDES[scale]}", plain, "CPU s"))
    setup = set_up(folder, 128, quick())
    task = new_task(setup, folder)
    ours = 0.0
    for plan in setup.plans:
        task.start_phase(f"group {plan.index + 1}")
        steps = iter(range(1000))

        def four(plan: Any = plan, steps: Any = steps) -> None:  # one of four updates has a penalty
            for _ in range(4):
                i = next(steps)
                task.step(setup.samples.batch(plan, i), i)

        seconds = alternately({"ours": four})["ours"] / 4
        sides = " and ".join(str(setup.samples.sizes[0][k][0]) for k in plan.scales)
        table.append(row(f"quick, group of {sides}, an iteration", seconds, "CPU s"))
        ours = seconds / plan.batch_size
    table.append(row("quick at 128, a section", ours, "CPU s"))
    what = "plain over quick, a section at 128"
    return [*table, row(what, plain / ours, "times", least=4.0, baseline="plain loop")]


def smoother_rows(folder: Path) -> Table:
    """Measure 16 smoothers fitted together beside one after another, and pyramids found in the cache."""
    sections = [make_section(7, i, 24, 30) for i in range(SMOOTHER_IMAGES)]
    found = alternately(
        {
            "together": lambda: fit(sections, 4, steps=SMOOTHER_STEPS),
            "alone": lambda: [fit([section], 4, steps=SMOOTHER_STEPS) for section in sections],
        }
    )
    root = folder / "sections"
    for i, labels in enumerate(sections[:4]):
        path = root / "facies" / f"xz_crossline_{i:03d}.png"
        write_label_png(path, labels, synthetic_palette("sections").colors)
    with _quiet():
        data = read_training_data(TrainingOptions(input_path=root), seed=0)
    sizes = [[(12, 16), (24, 30)]] * len(data)
    cache = PyramidCache(folder / "pyramids")
    config = InterpolatorConfig(fit_steps=SMOOTHER_STEPS)

    def build() -> None:
        facies_pyramids(data.sections, data.palette, sizes, "neural", cache=cache, config=config)

    first = cpu_seconds(build)
    again = statistics.median(cpu_seconds(build) for _ in range(REPEATS))
    return [
        row(f"{SMOOTHER_IMAGES} smoothers fitted together", found["together"], "CPU s"),
        row(f"{SMOOTHER_IMAGES} smoothers one by one", found["alone"], "CPU s"),
        row(
            "one by one over together",
            found["alone"] / found["together"],
            "times",
            least=1.0,
            baseline="one by one",
        ),
        row(
            "pyramids built over found in the cache", first / again, "times", least=10.0, baseline="building"
        ),
    ]


def memory_of(task: str) -> float:
    """Return the peak memory, MB, of this file run as `--memory TASK` in a process of its own."""
    return ask(__file__, "--memory", task)


def run_memory_task(task: str) -> None:
    """Do what `task` says and print the peak memory, MB.

    Args:
        task: "train" (the preset quick), "tiles", or a number of realisations.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if task == "train":
            train_a_little(Path(name))
            print(peak_bytes() / 1e6)
            return
        simulator = new_simulator(Path(name))
        side, tile, count = (1000, 256, 1) if task == "tiles" else (SIDE, 0, int(task))
        conditioning = Conditioning(simulator.card, (side, side))
        for _ in realisations(simulator, conditioning, list(range(count)), batch_size=1, tile=tile):
            pass
    print(peak_bytes() / 1e6)


def train_a_little(folder: Path) -> None:
    """Train every group of the preset quick on 250 x 250 cells for four updates, one with a penalty."""
    setup = set_up(folder, SIDE, quick())
    task = new_task(setup, folder)
    for plan in setup.plans:
        task.start_phase(f"group {plan.index + 1}")
        for i in range(4):
            task.step(setup.samples.batch(plan, i), i)


def memory_rows() -> Table:
    """Measure the memory of a training, of a large tiled grid, and of sets of 10 and 200 realisations."""
    tiles, few, many = memory_of("tiles"), memory_of("10"), memory_of("200")
    return [
        row("memory, training quick on 250 x 250", memory_of("train"), "MB", 2000),
        row("memory, 1000 x 1000 in tiles of 256", tiles, "MB", 1500),
        row("memory, 200 realisations over 10", many - few, "MB", 20),
    ]


def save(case: str, rows: Table, began: float) -> None:
    """Print the rows of a case and replace them in the file; the other cases stay."""
    show(rows)
    result = {
        "rows": rows,
        "command": command_line(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, one thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    store_case(RESULT, case, result, alone="cost")


def save_snesim(rows: Table, reason: str, began: float) -> None:
    """Replace the case SNESIM; where it did not run, say why and keep what an earlier call measured.

    Args:
        rows: of this call; none where it did not run.
        reason: why it did not.
        began: `time.perf_counter()` at the start.
    """
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    earlier = stored.get("SNESIM", {"rows": []})
    if not rows and any(line["value"] is not None for line in earlier["rows"]):
        print(f"SNESIM: not run, {reason}; its rows of {earlier['date']} are kept", flush=True)
        return
    save("SNESIM", rows or [row(f"SNESIM: not run, {reason}", float("nan"), "CPU s")], began)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the lines of preparation out of the table."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
        yield


def main(arguments: list[str]) -> int:
    """Measure, print, and write benchmarks/results/facies_gan.json."""
    if arguments[:1] == ["--memory"]:
        run_memory_task(arguments[1])
        return 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generation, beside, reason = generation_rows(folder)
        save("cost", generation + gpu_rows(folder) + smoother_rows(folder) + memory_rows(), began)
        save_snesim(beside, reason, began)
        if "--bench_train" in arguments:
            began = time.perf_counter()
            save("training", train_rows(folder), began)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
