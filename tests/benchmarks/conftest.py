"""The benchmarks are no installed package: they are found from the repository's root."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
