"""Shared by the scripts that print tables over suite:skills: running lorakit at a seed, options, and table cells."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess

# Whether to run a minimal version as a smoke test.
QUICK = bool(os.environ.get("QUICK"))


class Seed:
    """Runs commands at one seed, in one folder."""

    def __init__(self, binary, out, seed):
        self.binary, self.seed, self.out = binary, str(seed), out / f"seed-{seed}"
        self.out.mkdir(parents=True, exist_ok=True)

    def lorakit(self, *arguments):
        """The JSON output of a command."""
        command = [self.binary, *map(str, arguments), "--seed", self.seed, "--json", "-q"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
        return json.loads(done.stdout)


def options(description):
    """A parser with the common options; see `parsed`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = pathlib.Path(__file__).resolve().parent.parent / "target/release/lorakit"
    parser.add_argument("--lorakit", default=os.environ.get("LORAKIT", binary))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser


def parsed(parser):
    """The parsed options; with QUICK, only one seed."""
    arguments = parser.parse_args()
    if QUICK:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def cell(values, digits):
    """The mean, with its standard error if there are several values."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ±{statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def safe(name):
    """A name that is safe as a file name."""
    return "".join(c if c.isalnum() else "_" for c in name)
