"""`python -m headrace` is `headrace`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, where a file may have the name of a library's module

from headrace.cli import main

main(prog_name="headrace")
