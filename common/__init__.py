"""What two or more of the five packages share: one subject a file, none of them imports a package."""

import os

# How long an OpenMP thread spins for the next parallel region before it sleeps; read when torch is loaded.
# By default it spins for milliseconds. On a machine that others use too the spinning holds the core that the
# work waits for: two threads then take several times as long. An idle machine loses nothing by short spins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
