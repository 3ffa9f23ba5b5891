"""Compares the results of two devices for gpu_check.sh, using only the standard library.

    scripts/gpu_compare.py KIND BASE WHAT CPU DEVICE ALLOWED

prints a row of the table, and fails with status 1 if the results differ by more than ALLOWED. KIND says what the files or
folders CPU and DEVICE are. Two more commands prepare the comparisons: `ids VOCABULARY OUT` and `oracles EXPECTED`.
"""

import argparse
import array
import json
import math
import random
import struct
import sys
from pathlib import Path


def tensors(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            yield name, about["dtype"], data[8 + length + start : 8 + length + end]


def floats(path, wanted=None):
    """All values, or those of one tensor."""
    values = array.array("f")
    for name, dtype, data in tensors(path):
        if wanted in (None, name):
            assert dtype == "F32", dtype
            values.frombytes(data)
    return values


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def ids(vocabulary, out):
    """Writes two rows of random tokens."""
    draw = random.Random(1)
    data = struct.pack("<96q", *(draw.randrange(vocabulary) for _ in range(96)))
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [2, 48], "data_offsets": [0, len(data)]}}).encode()
    Path(out).write_bytes(struct.pack("<Q", len(header)) + header + data)


def row(base, what, cpu, device, difference, allowed):
    """Prints a row of the table; a difference above the tolerance, or NaN, fails."""
    good = difference <= allowed
    print(f"{base:<14} {what:<38} {cpu:>14} {device:>14} {difference:>10.2e} {allowed:>8.0e}  {'ok' if good else 'DIFFERS'}")
    return good


def pairs(cpu, device):
    assert len(cpu) == len(device) > 0, f"{len(cpu)} and {len(device)} logits"
    return [abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in zip(cpu, device)]


def logits(base, what, cpu, device, allowed):
    cpu, device = floats(cpu), floats(device)
    return row(base, what, f"rms {rms(cpu):.4f}", f"rms {rms(device):.4f}", max(pairs(cpu, device)), float(allowed))


def rounded(base, what, cpu, device, allowed):
    """16-bit logits: the RMS of the differences relative to that of the logits."""
    cpu, device = floats(cpu), floats(device)
    share = rms(pairs(cpu, device)) / rms(cpu)
    return row(base, what, f"rms {rms(cpu):.4f}", f"rms {rms(device):.4f}", share, float(allowed))


def oracle(base, what, expected, device, allowed):
    """Compares with PEFT's logits of that name in expected.safetensors."""
    expected, device = floats(expected, what), floats(device)
    what = f"PEFT's logits: {what}"
    return row(base, what, f"rms {rms(expected):.4f}", f"rms {rms(device):.4f}", max(pairs(expected, device)), float(allowed))


def oracles(path):
    """Prints the names of PEFT's logits: of the base, of adapters, and of Arrow over all adapters but `rs`."""
    for name, _, _ in tensors(path):
        if name == "base" or name.startswith(("adapter/", "arrow/")):
            print(name)


def choices(base, what, cpu, device, allowed):
    """The share of choices, over all tokens, layers and projections, with other experts."""
    cpu, device = (
        [[{share["expert"] for share in token} for token in choice["tokens"]] for choice in json.loads(Path(path).read_text())["choices"]]
        for path in (cpu, device)
    )
    assert [len(tokens) for tokens in cpu] == [len(tokens) for tokens in device] != []
    same = [a == b for one, other in zip(cpu, device) for a, b in zip(one, other)]
    return row(base, what, f"{len(same)} choices", f"{sum(same)} the same", 1 - sum(same) / len(same), float(allowed))


def losses(base, _, cpu, device, allowed):
    """Training losses and gradient norms, step by step."""
    good = True
    for record in sorted(Path(cpu).glob("experts/*/expert.json")):
        mine = json.loads(record.read_text())["losses"]
        other = json.loads((Path(device) / record.relative_to(cpu)).read_text())["losses"]
        for kind in ("train", "grad_norm"):
            assert len(mine[kind]) == len(other[kind]) > 0
            worst = max(abs(a - b) for a, b in zip(mine[kind], other[kind]))
            name = f"{kind} of {record.parent.name}, last"
            good &= row(base, name, f"{mine[kind][-1]:.6f}", f"{other[kind][-1]:.6f}", worst, float(allowed))
    return good


def clusters(base, what, cpu, device, _):
    sets = [sorted(map(sorted, json.loads(Path(path).read_text())["clusters"].values())) for path in (cpu, device)]
    differ = float(sets[0] != sets[1])
    return row(base, what, f"{len(sets[0])} clusters", f"{len(sets[1])} clusters", differ, 0.0)


def verified(base, what, _, device, allowed):
    worst = max(compared["beyond_rounding"] for compared in json.loads(Path(device).read_text())["compared"])
    return row(base, what, "", "", worst, float(allowed))


def scores(base, _, cpu, device, allowed):
    cpu, device = (json.loads(Path(path).read_text())["results"] for path in (cpu, device))
    good = cpu.keys() == device.keys()
    for router, of_tasks in cpu.items():
        for task, found in of_tasks.items():
            for metric, score in found["metrics"].items():
                other = device[router][task]["metrics"][metric]["value"]
                name = f"{metric} of {router} on {task}"
                if metric == "loss" or score["value"] != other:
                    difference = abs(score["value"] - other)
                    good &= row(base, name, f"{score['value']:.6f}", f"{other:.6f}", difference, float(allowed))
    return good


def text(base, what, cpu, device, _):
    cpu, device = (json.loads(Path(path).read_text())["text"] for path in (cpu, device))
    short = lambda text: repr(text)[:14]
    return row(base, what, short(cpu), short(device), float(cpu != device), 0.0)


COMPARISONS = [logits, rounded, oracle, choices, losses, clusters, verified, scores, text]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="KIND")
    of_ids = commands.add_parser("ids", help=ids.__doc__)
    of_ids.add_argument("vocabulary", type=int)
    of_ids.add_argument("out")
    of_ids.set_defaults(run=lambda of: ids(of.vocabulary, of.out))
    of_oracles = commands.add_parser("oracles", help=oracles.__doc__)
    of_oracles.add_argument("expected")
    of_oracles.set_defaults(run=lambda of: oracles(of.expected))
    for comparison in COMPARISONS:
        compared = commands.add_parser(comparison.__name__, help=comparison.__doc__)
        for name in ["base", "what", "cpu", "device", "allowed"]:
            compared.add_argument(name)
        compared.set_defaults(run=lambda of, run=comparison: run(of.base, of.what, of.cpu, of.device, of.allowed))
    of = parser.parse_args()
    if of.run(of) is False:
        sys.exit(1)


if __name__ == "__main__":
    main()
