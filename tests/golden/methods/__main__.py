"""Compare the registered losses with files of reference values: python -m tests.golden.methods FILE.npz ...

Prints method, array, our value and the relative difference, what is not compared and why, and ends with "n of m": of m
results in all files n agree. The exit code is 1 where one differs, where a method or an array is unknown, a file cannot
be read, or nothing was compared.
"""

import argparse

from tests.golden.methods.core import main

parser = argparse.ArgumentParser(
    prog="python -m tests.golden.methods", description="Compare the registered losses with reference values."
)
parser.add_argument("files", nargs="*", metavar="FILE.npz", help="called like the method: kd.npz, kd_seed1.npz")
raise SystemExit(main(parser.parse_args().files))
