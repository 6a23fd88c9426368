"""The command line programs. Each module parses its flags before it imports torch, so that --help answers at once."""

import os

# Threads that wait for others spin, and beside other work that takes the cores from the very threads they wait for.
# libgomp, which torch brings on Linux, spins 300,000 times by default, and reads its settings when torch is imported.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"
