"""Imported once by the process that forks runs, never by a run itself."""

import os
from importlib import import_module

from ouro_lab.processes import IMPORTS

# A process with threads is unsafe to fork, and NumPy's products start theirs when it is imported.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
for name in IMPORTS:
    import_module(name)
