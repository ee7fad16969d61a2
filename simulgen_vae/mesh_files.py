"""Predictions for ParaView: .vtu of any mesh, .vti of regular grids, a .pvd that puts frames into time.

T frames, M nodes. Written without further libraries; values are at points, VTK's legacy cell numbers apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from common.errors import DataError
from common.files import atomic_path
from common.log import get_logger
from common.vtk import VTI_END, block_head, write_pvd, write_vti
from simulgen_vae.model_files import Surrogate

# meshio's names of cells -> VTK's numbers (vtkCellType.h); nodes stand in the same order in both.
CELL_TYPES = {
    "vertex": 1,
    "line": 3,
    "triangle": 5,
    "quad": 9,
    "tetra": 10,
    "hexahedron": 12,
    "wedge": 13,
    "pyramid": 14,
    "line3": 21,
    "triangle6": 22,
    "quad8": 23,
    "tetra10": 24,
    "hexahedron20": 25,
}
_TYPES = {"f4": "Float32", "f8": "Float64", "u1": "UInt8", "i4": "Int32", "i8": "Int64"}
SPACING_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Mesh:
    """The nodes and what joins them.

    Attributes:
        points: float64 [M, 3].
        cells: cell type -> int64 [cells, nodes a cell]; without any, every node is a vertex.
        grid_shape: (ny, nx) of a regular grid with node = iy nx + ix, or None.
    """

    points: np.ndarray
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)
    grid_shape: tuple[int, int] | None = None


def mesh_of(surrogate: Surrogate) -> Mesh:
    """Return the mesh of a deliverable; without coordinates, nodes stand one unit apart."""
    config, arrays = surrogate.config, surrogate.arrays
    grid = None if config["grid_shape"] is None else (config["grid_shape"][0], config["grid_shape"][1])
    cells = {n.removeprefix("cells_"): v.cpu().numpy() for n, v in arrays.items() if n.startswith("cells_")}
    if "coords" in arrays:
        return Mesh(arrays["coords"].cpu().double().numpy(), cells, grid)
    num_nodes = surrogate.basis.num_nodes
    get_logger().warning("warning: the model knows no coordinates; its nodes are written one unit apart")
    width = grid[1] if grid else num_nodes
    rows, columns = np.divmod(np.arange(num_nodes), width)
    points = np.stack([columns, rows, np.zeros(num_nodes)], axis=1).astype(np.float64)
    if not cells and grid is None and num_nodes > 1:
        cells = {"line": np.stack([np.arange(num_nodes - 1), np.arange(1, num_nodes)], axis=1)}
    return Mesh(points, cells, grid)


class _Blocks:
    """Arrays that are appended to a file, and the lines that say where each one lies."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    @property
    def num_bytes(self) -> int:
        return sum(8 + block.nbytes for block in self.arrays)

    def add(self, name: str, values: np.ndarray, components: int = 1) -> str:
        """Return the line of an array."""
        offset, block = self.num_bytes, np.ascontiguousarray(values)
        self.arrays.append(block.astype(block.dtype.newbyteorder("<"), copy=False))
        return (
            f'        <DataArray type="{_TYPES[block.dtype.str[1:]]}" Name={quoteattr(name)} '
            f'NumberOfComponents="{components}" format="appended" offset="{offset}"/>\n'
        )


def write_vtu(path: str | Path, mesh: Mesh, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write point values {name: [M]} on a mesh as UnstructuredGrid with raw appended blocks.

    Raises:
        DataError: a cell type is unknown.
        ValueError: an array has another length.
    """
    points = np.ascontiguousarray(mesh.points, dtype=np.float64)
    cells = dict(mesh.cells) or {"vertex": np.arange(len(points))[:, None]}
    unknown = sorted(set(cells) - set(CELL_TYPES))
    if unknown:
        raise DataError(f"{path}: cells {unknown[0]}, expected {', '.join(CELL_TYPES)}; export npy instead")
    nodes = np.concatenate([np.asarray(c, dtype=np.int64).reshape(-1) for c in cells.values()])
    sizes = np.concatenate([np.full(len(c), c.shape[1], dtype=np.int64) for c in cells.values()])
    kinds = np.concatenate([np.full(len(c), CELL_TYPES[n], dtype=np.uint8) for n, c in cells.items()])
    for name, values in arrays.items():
        if np.shape(values) != (len(points),):
            raise ValueError(f"{name}: shape {np.shape(values)}, expected ({len(points)},)")
    blocks = _Blocks()
    text = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="UnstructuredGrid" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'  <UnstructuredGrid>\n    <Piece NumberOfPoints="{len(points)}" NumberOfCells="{len(sizes)}">\n'
        "      <PointData>\n"
        + "".join(blocks.add(name, values) for name, values in arrays.items())
        + "      </PointData>\n      <Points>\n"
        + blocks.add("Points", points, 3)
        + "      </Points>\n      <Cells>\n"
        + blocks.add("connectivity", nodes)
        + blocks.add("offsets", np.cumsum(sizes))
        + blocks.add("types", kinds)
        + "      </Cells>\n    </Piece>\n  </UnstructuredGrid>\n"
        '  <AppendedData encoding="raw">\n_'
    )
    path = Path(path)
    needed = blocks.num_bytes
    with atomic_path(path, needed_bytes=needed) as temporary, temporary.open("wb") as file:
        file.write(text.encode())
        for block in blocks.arrays:
            file.write(block_head(block.nbytes))
            file.write(block.tobytes())
        file.write(VTI_END)
    return path


def grid_spacing(mesh: Mesh) -> tuple[float, float] | None:
    """Return (dy, dx) when the nodes form an even grid in the plane z = const, else None."""
    if mesh.grid_shape is None:
        return None
    cells = mesh.points.reshape(*mesh.grid_shape, 3)
    x, y = cells[0, :, 0], cells[:, 0, 1]
    dx = float(x[-1] - x[0]) / max(len(x) - 1, 1) or 1.0
    dy = float(y[-1] - y[0]) / max(len(y) - 1, 1) or 1.0
    even_x, even_y = x[0] + dx * np.arange(len(x)), y[0] + dy * np.arange(len(y))
    expected = np.stack([*np.meshgrid(even_x, even_y), np.full(mesh.grid_shape, cells[0, 0, 2])], axis=-1)
    even = np.abs(cells - expected).max() <= SPACING_TOLERANCE * min(abs(dx), abs(dy))
    return (dy, dx) if even and dx > 0 and dy > 0 else None


def write_series(
    folder: Path, name: str, mesh: Mesh, time: Sequence[float] | np.ndarray, arrays: Mapping[str, np.ndarray]
) -> list[Path]:
    """Write one .vtu a frame and <name>.pvd, and for even grids one .vti a frame and <name>_grid.pvd.

    Args:
        folder: of the .pvd files; frames go to <folder>/<name>/.
        name: of the series.
        mesh: the nodes.
        time: of the frames, [T].
        arrays: point values {name: [T, M]}.

    Returns:
        the .pvd files.
    """
    digits = max(4, len(str(len(time) - 1)))
    frames, grids = [], []
    spacing = grid_spacing(mesh)
    for k, instant in enumerate(time):
        values = {n: np.ascontiguousarray(v[k], dtype=np.float32) for n, v in arrays.items()}
        place = folder / name / f"frame{k:0{digits}d}"
        frames.append((float(instant), write_vtu(place.with_suffix(".vtu"), mesh, values)))
        if spacing is not None and mesh.grid_shape is not None:
            shaped = {n: v.reshape(1, *mesh.grid_shape) for n, v in values.items()}
            x, y, z = mesh.points[0]
            sizes = (1.0, spacing[0], spacing[1])
            path = place.with_suffix(".vti")
            write_vti(path, shaped, sizes, (-z, y, x), kind="PointData")
            grids.append((float(instant), path))
    made = [write_pvd(folder / f"{name}.pvd", frames)]
    if grids:
        made.append(write_pvd(folder / f"{name}_grid.pvd", grids))
    return made
