"""Split conformal prediction: which of the sorted calibration scores a new one stays below."""

from __future__ import annotations

import math


def conformal_rank(num_scores: int, coverage: float) -> int:
    """Return ceil((n + 1) coverage): the rank, from 1, of the score among n exchangeable ones in order.

    A new score is at most that one with probability `coverage` or more (Vovk et al. 2005; Angelopoulos and
    Bates 2023, arXiv 2107.07511, section 1). Above n no finite factor covers that much. The product is
    rounded first: 25 * 0.56 is 14, not the 14.000000000000002 of binary numbers, whose ceiling is 15.
    """
    return math.ceil(round((num_scores + 1) * coverage, 9))
