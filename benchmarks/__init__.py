"""What a mask costs, on this machine, against the ways people do without: `python -m benchmarks --help`.

It needs Python, torch and numpy, nothing else: a machine with a GPU often has no network. Imports are relative, since a
wheel carries it as dsd_kernels.benchmarks.
"""

import os
import sys

# Threads that spin while they wait turn microseconds into milliseconds on a busy machine; torch reads it when it loads.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
