"""The guard: candidates compete on rows they have not seen, and the best one ships.

With few runs a validation split of ten rows is noise: Gaussian processes are then scored by leave-one-out in
closed form and networks by 5-fold cross-validation on the training rows. With many runs the validation split
decides.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from common.device import few_threads
from common.log import get_logger
from common.noise import torch_stream
from simulgen_vae.field_metric import FieldMetric, TrueFieldMetric
from simulgen_vae.pairs import batched, disagreement, pair_of
from simulgen_vae.predictor import Predictor, TrainingSet, deviations_of

SMALL = 400  # training rows below which cross-validation replaces the validation split
FOLDS = 5
TIE = 0.01  # within this share of the best mean error the simpler candidate ships
SIMPLEST_FIRST = ("gp2", "direct", "vae_gp", "vae_net", "field_net")
WEIGHTS = (0.25, 0.5, 0.75)
POD_GP = "gp2"  # the POD + Gaussian process regression that every network has to beat


Spread = Callable[[int, int, int], torch.Tensor]
Fields = Callable[[int], torch.Tensor]  # number of a sample in the data set -> its field [T, M, V]


def _no_spread(_row: int, num: int, _seed: int) -> torch.Tensor:
    """Stand for one who knows no spread."""
    return torch.zeros(num, 1, 1)


@dataclass(frozen=True)
class Contender:
    """A way to make a predictor.

    Attributes:
        name: of `SIMPLEST_FIRST`.
        fit: trains on a set of rows.
        leave_one_out: fitted predictor and its rows -> held-out predictions [n, r_s, T]; None for networks.
            Such a predictor has `left_out_deviations` too.
        fit_fold: cheaper training for the folds; None = `fit`.
        num_folds: folds that are held out, at most `FOLDS`; rows of the others are not scored.
        wide: its tensors are large enough for several CPU threads.
    """

    name: str
    fit: Callable[[TrainingSet], Predictor]
    leave_one_out: Callable[[Any, TrainingSet], torch.Tensor] | None = None
    fit_fold: Callable[[TrainingSet], Predictor] | None = None
    num_folds: int = FOLDS
    wide: bool = False


@dataclass(frozen=True)
class Candidate:
    """A fitted predictor and what it said about rows it had not seen.

    Attributes:
        name: its name.
        predictor: fitted to all training rows.
        held_out: [n, r_s, T] its predictions for the rows of the contest; NaN where it made none.
        how: leave-one-out, 5-fold or validation.
        seconds: CPU time of everything.
        spread: (row, num, seed) -> draws [num, r_s, T] around that prediction, by whoever made it.
    """

    name: str
    predictor: Predictor
    held_out: torch.Tensor
    how: str
    seconds: float
    spread: Spread = field(default=_no_spread, repr=False)


@dataclass(frozen=True)
class Entry:
    """One line of the contest: a candidate or a pair, and its mean and median held-out relative L2 error."""

    name: str
    members: tuple[str, ...]
    weight: float
    mean: float
    median: float
    how: str
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Who ships, and the whole contest.

    Attributes:
        ships: name of the winner, e.g. "gp2" or "gp2+field_net".
        members: one name, or two of a pair.
        weight: of the first member.
        entries: all candidates and pairs, best mean first.
        line: the plain last line.
    """

    ships: str
    members: tuple[str, ...]
    weight: float
    entries: tuple[Entry, ...]
    line: str

    def document(self) -> dict[str, Any]:
        """Return what `guard.json` holds."""
        lines = [
            {
                "name": e.name,
                "members": list(e.members),
                "weight": e.weight,
                "mean_relative_l2": e.mean,
                "median_relative_l2": e.median,
                "scored_by": e.how,
                "cpu_seconds": e.seconds,
            }
            for e in self.entries
        ]
        return {
            "ships": self.ships,
            "members": list(self.members),
            "weight": self.weight,
            "tie": TIE,
            "line": self.line,
            "candidates": lines,
        }


@dataclass(frozen=True)
class Contest:
    """The outcome: the verdict, the winner, every fitted candidate, and the winner's held-out predictions.

    Attributes:
        verdict: who ships and why.
        winner: the predictor that ships.
        candidates: by name.
        held_out: [n, r_s, T] of the winner on `rows`.
        rows: what the winner's members held out: training rows, or the validation split.
        spread: of those predictions, see `Candidate`.
    """

    verdict: Verdict
    winner: Predictor
    candidates: Mapping[str, Candidate] = field(repr=False)
    held_out: torch.Tensor = field(repr=False)
    rows: TrainingSet = field(repr=False)
    spread: Spread = field(default=_no_spread, repr=False)

    @property
    def by_validation(self) -> bool:
        """Whether the validation split decided."""
        return all(candidate.how == "validation" for candidate in self.candidates.values())


def fold_numbers(num_rows: int, num_folds: int, seed: int) -> torch.Tensor:
    """Return the fold 0..num_folds-1 of each row, [n], as even as can be, in seeded order."""
    order = torch.randperm(num_rows, generator=torch_stream(seed, "contest folds"))
    folds = torch.empty(num_rows, dtype=torch.int64)
    folds[order] = torch.arange(num_rows) % num_folds
    return folds


def predict_rows(predictor: Predictor, rows: TrainingSet) -> torch.Tensor:
    """Return the predictions [n, r_s, T] for all rows of a set."""
    return batched(lambda index: predictor(rows.subset(index).inputs()), torch.arange(len(rows)))


def enter(contender: Contender, train: TrainingSet, validation: TrainingSet | None) -> Candidate:
    """Fit a contender to the training rows and let it predict rows that it has not seen."""
    started = time.process_time()
    predictor = contender.fit(train)
    if len(train) >= SMALL and validation is not None and len(validation):
        held_out, how = predict_rows(predictor, validation), "validation"
        spread = spread_of([predictor], validation, torch.zeros(len(validation), dtype=torch.int64))
    elif contender.leave_one_out is not None:
        held_out, how = contender.leave_one_out(predictor, train), "leave-one-out"
        spread = left_out_spread(predictor, train)
    else:
        fit, count = contender.fit_fold or contender.fit, contender.num_folds
        (held_out, spread), how = cross_validate(fit, train, count), f"{FOLDS}-fold"
        how += "" if count == FOLDS else f" ({count} of them)"
    return Candidate(contender.name, predictor, held_out, how, time.process_time() - started, spread)


def spread_of(predictors: Sequence[Predictor], rows: TrainingSet, who: torch.Tensor) -> Spread:
    """Return the spread of predictions where row i was predicted by number `who[i]`."""

    def spread(i: int, num: int, seed: int) -> torch.Tensor:
        return deviations_of(predictors[int(who[i])], rows.subset(torch.tensor([i])), num, seed)

    return spread


def left_out_spread(predictor: Any, rows: TrainingSet) -> Spread:
    """Return the spread of leave-one-out predictions: each row's without itself and its mirror image."""

    def spread(i: int, num: int, seed: int) -> torch.Tensor:
        group = [i] if rows.symmetry is None else [i, len(rows) + i]
        return predictor.left_out_deviations(torch.tensor(group), num, seed)

    return spread


def cross_validate(
    fit: Callable[[TrainingSet], Predictor], train: TrainingSet, num_folds: int = FOLDS
) -> tuple[torch.Tensor, Spread]:
    """Return the prediction [n, r_s, T] of each row by a predictor fitted without the row's fold, its spread.

    Only the first `num_folds` folds are held out where time is short; the rows of the others stay NaN.
    """
    folds = fold_numbers(len(train), min(FOLDS, len(train)), train.seed)
    held_out = torch.full_like(train.c, float("nan"))
    predictors = []
    for number in range(min(num_folds, int(folds.max()) + 1)):
        out = torch.nonzero(folds == number)[:, 0]
        predictors.append(fit(train.subset(torch.nonzero(folds != number)[:, 0])))
        held_out[out] = predict_rows(predictors[-1], train.subset(out))
    return held_out, spread_of(predictors, train, folds)


def scored_rows(
    candidates: Sequence[Candidate], num_folds: Mapping[str, int], rows: TrainingSet
) -> torch.Tensor:
    """Return the rows that all were to predict: those of the folds that the shortest one held out."""
    fewest = min((num_folds[c.name] for c in candidates if "fold" in c.how), default=FOLDS)
    folds = fold_numbers(len(rows), min(FOLDS, len(rows)), rows.seed)
    return torch.nonzero(folds < fewest)[:, 0]


def judge(candidates: Sequence[Candidate], truth: torch.Tensor, metric: FieldMetric) -> Verdict:
    """Return who ships: the lowest mean error; within `TIE` of it the simplest.

    Pairs are tried with the weights of `WEIGHTS`. A single candidate is simpler than any pair.

    Args:
        candidates: fitted and scored.
        truth: [n, r_s, T] of the rows that `held_out` predicts.
        metric: relative L2 of physical fields.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("a contest needs at least one candidate")
    ordered = sorted(candidates, key=lambda c: _rank(c.name))
    entries = [_entry((c,), 1.0, c.held_out, truth, metric) for c in ordered]
    for i, first in enumerate(ordered):
        for second in ordered[i + 1 :]:
            for weight in WEIGHTS:
                mix = weight * first.held_out + (1.0 - weight) * second.held_out
                entries.append(_entry((first, second), weight, mix, truth, metric))
    best = min(e.mean for e in entries)
    winner = next(e for e in entries if e.mean <= (1.0 + TIE) * best)
    entries.sort(key=lambda e: e.mean)
    line = last_line(winner, entries)
    return Verdict(winner.name, winner.members, winner.weight, tuple(entries), line)


def _rank(name: str) -> int:
    return SIMPLEST_FIRST.index(name) if name in SIMPLEST_FIRST else len(SIMPLEST_FIRST)


def _entry(
    members: tuple[Candidate, ...],
    weight: float,
    found: torch.Tensor,
    truth: torch.Tensor,
    metric: FieldMetric,
) -> Entry:
    scores = metric.relative_l2(found, truth)
    scores = torch.where(torch.isfinite(scores), scores, torch.inf)
    names = tuple(m.name for m in members)
    how = " and ".join(dict.fromkeys(m.how for m in members))
    seconds = sum(m.seconds for m in members)
    return Entry("+".join(names), names, weight, float(scores.mean()), float(scores.median()), how, seconds)


def last_line(winner: Entry, entries: Sequence[Entry]) -> str:
    """Return the plain statement that ends a training: what ships, and how it stands to POD + GPR."""
    gp = next((e for e in entries if e.members == (POD_GP,)), None)
    if winner.members == (POD_GP,):
        others = [e for e in entries if POD_GP not in e.members]
        beside = f", best network {others[0].mean:.4f} ({others[0].name})" if others else ""
        return f"POD+GPR is as good here; shipping it (held-out relative L2 {winner.mean:.4f}{beside})"
    share = f" with weights {winner.weight:g} and {1 - winner.weight:g}" if len(winner.members) > 1 else ""
    against = f" against {gp.mean:.4f} of POD+GPR" if gp else ""
    return f"shipping {winner.name}{share}: held-out relative L2 {winner.mean:.4f}{against}"


def metric_of(rows: TrainingSet, fields: Fields | None) -> FieldMetric:
    """Return how rows are scored: as an evaluation does where the true fields can be read."""
    numbers = rows.rows
    if fields is None or numbers is None or rows.basis.is_identity:
        return FieldMetric(rows.basis)
    return TrueFieldMetric(rows.basis, rows.c, lambda i: fields(int(numbers[i])))


def run_contest(
    contenders: Sequence[Contender],
    train: TrainingSet,
    validation: TrainingSet | None,
    fields: Fields | None = None,
) -> Contest:
    """Fit all contenders, score them on unseen rows, and return the winner.

    Every contender is scored on the same rows: training rows by cross-validation below `SMALL` of them (those
    of the folds that all could afford), the validation split otherwise.
    """
    log = get_logger()
    candidates = {}
    for contender in contenders:
        with few_threads(torch.get_num_threads() if contender.wide else 1):
            candidates[contender.name] = found = enter(contender, train, validation)
        log.info("%s: fitted and scored by %s in %.1f CPU s", found.name, found.how, found.seconds)
    by_validation = next(iter(candidates.values())).how == "validation"
    rows = validation if by_validation else train
    assert rows is not None
    counts, whole = {c.name: c.num_folds for c in contenders}, candidates
    if not by_validation:
        kept = scored_rows(list(candidates.values()), counts, rows)
        rows = rows.subset(kept)
        candidates = {n: _only(c, kept) for n, c in candidates.items()}
    verdict = judge(list(candidates.values()), rows.c, metric_of(rows, fields))
    chosen = [candidates[name] for name in verdict.members]
    if not by_validation:  # all that its own members held out tells of the winner
        kept = scored_rows([whole[name] for name in verdict.members], counts, train)
        rows, chosen = train.subset(kept), [_only(whole[name], kept) for name in verdict.members]
    if len(chosen) == 1:
        only = chosen[0]
        return Contest(verdict, only.predictor, candidates, only.held_out, rows, only.spread)
    first, second = chosen
    mix = verdict.weight * first.held_out + (1.0 - verdict.weight) * second.held_out
    winner = pair_of(first.predictor, second.predictor, verdict.weight)
    return Contest(verdict, winner, candidates, mix, rows, pair_spread(first, second, verdict.weight))


def _only(candidate: Candidate, kept: torch.Tensor) -> Candidate:
    """Return a candidate with its predictions of some rows."""

    def spread(i: int, num: int, seed: int) -> torch.Tensor:
        return candidate.spread(int(kept[i]), num, seed)

    return dataclasses.replace(candidate, held_out=candidate.held_out[kept], spread=spread)


def pair_spread(first: Candidate, second: Candidate, weight: float) -> Spread:
    """Return the spread of a mix, as `Pair.draws` has it."""

    def spread(i: int, num: int, seed: int) -> torch.Tensor:
        own = weight * first.spread(i, num, seed) + (1.0 - weight) * second.spread(i, num, seed + 1)
        return own + disagreement(first.held_out[i] - second.held_out[i], weight, num)

    return spread
