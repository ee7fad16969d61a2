"""Writers of dense volumes: flat binary (raw, npy, MetaImage, VTI) and HDF5, all slab by slab."""

from __future__ import annotations

import errno
import io
import math
import os
import resource
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from common.files import atomic_path, write_bytes
from common.vtk import VTI_END, Triple
from fault_seg.slabs import WINDOW_BYTES, FileWriter, VolumeWriter, require_no_folder
from fault_seg.vtk import mhd_header, vti_header

Shape = tuple[int, int, int]
_H5_MARGIN_BYTES = 1 << 20  # for chunk indices and what compression adds


class BinaryWriter(FileWriter):
    """Little-endian float32 between a header and a footer.

    With n1 fastest a slab is one block of the file. Otherwise (n3 fastest) it touches every row, so inlines
    are gathered up to 64 MiB before they are spread over the file.

    Args:
        path: the file.
        shape: (n1, n2, n3).
        header: bytes before the voxels.
        footer: bytes after them.
        n1_fastest: memory order.
    """

    def __init__(
        self, path: Path, shape: Shape, *, header: bytes = b"", footer: bytes = b"", n1_fastest: bool = True
    ) -> None:
        self._header, self._footer, self._n1_fastest = header, footer, n1_fastest
        self._gathered: list[tuple[int, np.ndarray]] = []
        super().__init__(path, shape, needed_bytes=len(header) + 4 * math.prod(shape) + len(footer))

    def _start(self, size: int) -> None:
        self._file.write(self._header)
        if self._n1_fastest:
            self._file.truncate(size)
        else:
            _reserve(self._file, size)
        self._file.seek(size - len(self._footer))
        self._file.write(self._footer)

    def _put(self, x0: int, slab: np.ndarray) -> None:
        if self._n1_fastest:
            self._file.seek(len(self._header) + 4 * x0 * self.shape[0] * self.shape[1])
            self._file.write(np.ascontiguousarray(slab.transpose(2, 1, 0), dtype="<f4").data)
            return
        self._gathered.append((x0, slab.copy(order="K")))
        if sum(part.nbytes for _, part in self._gathered) >= WINDOW_BYTES:
            self._spread()

    def _spread(self) -> None:
        """Write the gathered slabs through maps of at most 64 MiB of rows."""
        n1, n2, n3 = self.shape
        rows = max(1, WINDOW_BYTES // (4 * n2 * n3))
        for z0 in range(0, n1 if self._gathered else 0, rows):
            z1 = min(z0 + rows, n1)
            offset = len(self._header) + 4 * z0 * n2 * n3
            rows_on_disk = np.memmap(self._file, "<f4", "r+", offset, (z1 - z0, n2, n3))
            for x0, slab in self._gathered:
                rows_on_disk[:, :, x0 : x0 + slab.shape[2]] = slab[z0:z1]
            rows_on_disk.flush()
        self._gathered.clear()

    def _finish(self) -> None:
        self._spread()


def _reserve(file: BinaryIO, size: int) -> None:
    """Give `file` its blocks now: writing to a map when the disk is full would kill the process."""
    file.flush()
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS has no such call
        pass
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    file.seek(0, 2)
    while file.tell() < size:
        file.write(bytes(min(WINDOW_BYTES, size - file.tell())))


class MhdWriter(BinaryWriter):
    """MetaImage: the voxels in `<path>` with suffix .raw, then the header `<path>` that names them."""

    def __init__(self, path: Path, shape: Shape, spacing: Triple, origin: Triple) -> None:
        data_path = path.with_suffix(".raw")
        self._header_path = require_no_folder(path)
        super().__init__(data_path, shape, n1_fastest=False)
        self._mhd = mhd_header(shape, spacing, origin, data_path.name)

    def close(self) -> None:
        """Finish the voxels, then write the header."""
        was_open = self._open
        super().close()
        if was_open:
            write_bytes(self._header_path, self._mhd)


def npy_writer(path: Path, shape: Shape, layout: str) -> BinaryWriter:
    """Return a writer of an npy file that numpy.load gives back as [n1, n2, n3] (or [n3, n2, n1] for ixz).

    n1 is fastest in the file either way (Fortran order for zyx), so that slabs are written as they come.
    """
    head = io.BytesIO()
    ixz = layout == "ixz"
    description = {"descr": "<f4", "fortran_order": not ixz, "shape": shape[::-1] if ixz else shape}
    np.lib.format.write_array_header_1_0(head, description)
    return BinaryWriter(path, shape, header=head.getvalue())


def vti_writer(path: Path, shape: Shape, spacing: Triple, origin: Triple, name: str) -> BinaryWriter:
    """Return a writer of a VTI file with the point array `name`."""
    header = vti_header(shape, spacing, origin, name)
    return BinaryWriter(path, shape, header=header, footer=VTI_END, n1_fastest=False)


class H5Store:
    """One HDF5 file that several `H5Writer`s fill; it gets its name when the last of them is closed.

    Args:
        path: the file.
        shape: (n1, n2, n3) of every dataset.
        datasets: their names.
        layout: zyx or ixz.
        attributes: attributes of every dataset.
    """

    def __init__(
        self, path: Path, shape: Shape, datasets: Sequence[str], layout: str, attributes: dict[str, Any]
    ) -> None:
        import h5py

        require_no_folder(path)
        self.path, self.shape, self.layout = path, shape, layout
        self._unfinished = set(datasets)
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(
            atomic_path(path, needed_bytes=4 * math.prod(shape) * len(datasets))
        )
        stored = shape[::-1] if layout == "ixz" else shape
        inline = [min(256, n) for n in shape[:2]]  # one inline a chunk, so that none is compressed twice
        chunks = (1, inline[1], inline[0]) if layout == "ixz" else (*inline, 1)
        try:
            self.h5 = self._stack.enter_context(h5py.File(self._temporary, "w"))
            for name in datasets:
                data = self.h5.create_dataset(
                    name, stored, "<f4", chunks=chunks, compression="gzip", shuffle=True, fletcher32=True
                )
                data.attrs.update(attributes)
        except BaseException as error:
            self.discard(type(error), error, error.__traceback__)
            raise

    def require_room(self, num_bytes: int) -> None:
        """Raise OSError unless the disk and the file-size limit leave room for `num_bytes` more.

        HDF5 crashes the process when it closes a file after a failed write, so none may fail.
        """
        num_bytes += _H5_MARGIN_BYTES
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and self._temporary.stat().st_size + num_bytes > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if shutil.disk_usage(self._temporary.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def done(self, dataset: str) -> None:
        """Note that a dataset is complete."""
        self._unfinished.discard(dataset)
        if not self._unfinished:
            self._stack.close()

    def discard(
        self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the whole file."""
        self._stack.__exit__(kind, error, trace)


class H5Writer(VolumeWriter):
    """Writes one dataset of an `H5Store`; aborting it drops the whole store."""

    def __init__(self, store: H5Store, dataset: str, units: str) -> None:
        stack = ExitStack()
        stack.push(self._leave)
        super().__init__(store.path, store.shape, stack)
        self._store, self._dataset = store, dataset
        self._data: Any = store.h5[dataset]
        self._data.attrs["units"] = units

    def _put(self, x0: int, slab: np.ndarray) -> None:
        self._store.require_room(slab.nbytes)
        x1 = x0 + slab.shape[2]
        if self._store.layout == "ixz":
            self._data[x0:x1] = slab.transpose(2, 1, 0)
        else:
            self._data[:, :, x0:x1] = slab

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._store.done(self._dataset)
        else:
            self._store.discard(kind, error, trace)
