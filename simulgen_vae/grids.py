"""The regular grid of the generators: cells of a box 2 wide and 1 high, node = iy nx + ix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 2.0, 1.0


@dataclass(frozen=True)
class Grid:
    """nx x ny cells; row 0 of an array [ny, nx] is the lowest.

    Attributes:
        nx: cells along x, the box being 2 wide.
        ny: cells along y, the box being 1 high.
    """

    nx: int
    ny: int

    @property
    def hx(self) -> float:
        """Cell width."""
        return WIDTH / self.nx

    @property
    def hy(self) -> float:
        """Cell height."""
        return HEIGHT / self.ny

    @property
    def num_nodes(self) -> int:
        """The number M of cells."""
        return self.nx * self.ny

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x [1, nx] and y [ny, 1] of the cell centres."""
        return ((np.arange(self.nx) + 0.5) * self.hx)[None], ((np.arange(self.ny) + 0.5) * self.hy)[:, None]

    def coords(self) -> np.ndarray:
        """Return the centres as points [M, 3]."""
        x, y = np.broadcast_arrays(*self.centres())
        return np.stack([x.ravel(), y.ravel(), np.zeros(self.num_nodes)], axis=1)

    def cells(self) -> dict[str, np.ndarray]:
        """Return the quadrilaterals between four neighbouring centres, {"quad": [(ny - 1)(nx - 1), 4]}."""
        node = np.arange(self.num_nodes).reshape(self.ny, self.nx)
        corners = (node[:-1, :-1], node[:-1, 1:], node[1:, 1:], node[1:, :-1])
        return {"quad": np.stack([c.ravel() for c in corners], axis=1)}

    def mirror(self) -> np.ndarray:
        """Return the node permutation int64 [M] of y -> 1 - y."""
        return np.arange(self.num_nodes).reshape(self.ny, self.nx)[::-1].ravel()
