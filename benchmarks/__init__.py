"""What a mask costs, on this machine, against the ways people do without: `python -m benchmarks --help`.

It needs Python, torch and numpy, nothing else: a machine with a GPU often has no network.
"""

import os

# Before torch is imported: threads that spin while they wait turn microseconds into milliseconds on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
