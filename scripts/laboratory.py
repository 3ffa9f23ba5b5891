"""What the tables over suite:skills share: lorakit at one seed in one folder, the options, and a cell with its error."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess

# Whether a script only shows that all of it runs.
QUICK = bool(os.environ.get("QUICK"))


class Seed:
    """The commands of one seed, in one folder."""

    def __init__(self, binary, out, seed):
        self.binary, self.seed, self.out = binary, str(seed), out / f"seed-{seed}"
        self.out.mkdir(parents=True, exist_ok=True)

    def lorakit(self, *arguments):
        """What a command prints under --json."""
        command = [self.binary, *map(str, arguments), "--seed", self.seed, "--json", "-q"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
        return json.loads(done.stdout)


def options(description):
    """The options that the scripts have in common; to be parsed by [`parsed`]."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = pathlib.Path(__file__).resolve().parent.parent / "target/release/lorakit"
    parser.add_argument("--lorakit", default=os.environ.get("LORAKIT", binary))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser


def parsed(parser):
    """The options as given; under QUICK, one seed of them."""
    arguments = parser.parse_args()
    if QUICK:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def cell(values, digits):
    """The mean, and the standard error of the mean where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ±{statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def safe(name):
    """A name for a file."""
    return "".join(c if c.isalnum() else "_" for c in name)
