#!/usr/bin/env python3
"""Measures lorakit on a GPU against PEFT and PyTorch on the same GPU in the same run, and prints a table.

    cargo bench --no-run --features cuda         # prints executables; copy two to DIR/training_step and DIR/arrow
    scripts/gpu_bench.py --benches DIR --python PYTHON --out OUT

Without --benches, cargo builds and runs them. With --device cpu and few layers and tokens, the script can be tried without
a GPU. PYTHON needs torch, peft and transformers, and runs bench_pieces_peers.py, which does the same work; without it
lorakit is measured alone. With --base (a model folder with its tokenizer) and --tasks (a folder of task files), both also
train a library of 32 experts. Training rows show the best batch size of --rows for each program. At the full depth of
Phi-2 and Mistral, about 40 GB of disk below OUT and target/ are used.

Memory is GPU memory, sampled with nvidia-smi five times a second; with --device cpu it is the process's memory.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# FLOPs per token and parameter for a forward and backward pass of a frozen base.
FLOPS = 4
# The library sizes in benches/arrow.rs.
EXPERTS = [10, 64, 256]
RATE = """
import torch
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
for timed in (False, True):
    events[0].record()
    for _ in range(20):
        x @ x
    events[1].record()
    torch.cuda.synchronize()
print(20 * 2 * 8192**3 / (events[0].elapsed_time(events[1]) / 1e3) / 1e12)
"""


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--lorakit", default=os.environ.get("LORAKIT", ROOT / "target/release/lorakit"))
    parser.add_argument("--benches", type=pathlib.Path, help="folder with the executables training_step and arrow")
    parser.add_argument("--python", help="a Python with torch, peft and transformers, for PEFT's figures")
    parser.add_argument("--bases", nargs="+", choices=["phi", "mistral"], default=["phi", "mistral"])
    parser.add_argument("--layers", type=int, default=32, help="layers of the trained bases")
    parser.add_argument("--arrow-layers", type=int, default=8, help="layers of the slice for the routing benchmarks")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per row")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="rows per training step, of which the best is shown")
    parser.add_argument("--base")
    parser.add_argument("--tasks", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    return parser.parse_args()


class GpuMemory:
    """Peak GPU memory in use within the context, in GB."""

    def __enter__(self):
        self.most, self.open = 0.0, True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.open = False
        self.thread.join()

    def watch(self):
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while self.open:
            used = subprocess.run(query, capture_output=True, text=True).stdout.strip()
            self.most = max(self.most, float(used) * 1.048576e-3) if used.isdigit() else self.most
            time.sleep(0.2)


class Finished:
    """A finished process: its output, seconds, and peak memory in GB."""

    def __init__(self, command, device, **more):
        begun = time.monotonic()
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            with GpuMemory() if device == "cuda" else contextlib.nullcontext() as gpu:
                process = subprocess.Popen([str(word) for word in command], stdout=stdout, stderr=stderr, **more)
                # wait4 also returns the memory of this process.
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            self.stdout, self.stderr = (file.seek(0) or file.read() for file in (stdout, stderr))
        self.seconds = time.monotonic() - begun
        self.most = gpu.most if gpu else usage.ru_maxrss / 1e6
        self.ok = process.returncode == 0

    def found(self, pattern):
        """The last number in stdout that the pattern matches; None if the process failed or printed none."""
        numbers = re.findall(pattern, self.stdout)
        return float(numbers[-1]) if self.ok and numbers else None


class Bench:
    """Runs the two programs on one device."""

    def __init__(self, given):
        self.given, self.out = given, given.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "failed.log").unlink(missing_ok=True)
        self.dtype = "bf16" if given.device == "cuda" else "f32"
        self.features = ["--features", "cuda"] if given.device == "cuda" else []
        if not given.benches:
            # Otherwise the first measurement would include compilation.
            subprocess.run(["cargo", "bench", *self.features, "--no-run"], cwd=ROOT, check=True)

    def peer(self, work, *arguments):
        """Does a work by PEFT; None without a Python. The output of a failure is logged."""
        if not self.given.python:
            return None
        place = ["--device", self.given.device, "--dtype", self.dtype, "--threads", os.cpu_count()]
        command = [self.given.python, ROOT / "scripts/bench_pieces_peers.py", work, *place, *arguments]
        return self.kept(f"PEFT's {work}", Finished(command, self.given.device))

    def own(self, name, filter, **settings):
        """Runs one of our benches with a filter and BENCH_* settings."""
        built = [self.given.benches.resolve() / name, "--bench"] if self.given.benches else None
        command = built or ["cargo", "bench", *self.features, "--bench", name, "--"]
        environment = {f"BENCH_{key.upper()}": str(value) for key, value in settings.items()}
        environment |= {"BENCH_DEVICE": self.given.device, "CRITERION_HOME": str(self.out / "criterion")}
        shutil.rmtree(self.out / "criterion", ignore_errors=True)
        done = Finished([*command, filter], self.given.device, env=os.environ | environment, cwd=None if built else ROOT)
        return self.kept(name, done)

    def kept(self, name, done):
        if not done.ok:
            with open(self.out / "failed.log", "a") as log:
                log.write(f"== {name}\n{done.stdout}\n{done.stderr}\n")
        return done

    def median(self, group, name):
        """The median seconds of a bench in the last run."""
        path = self.out / "criterion" / group / name / "new/estimates.json"
        return json.loads(path.read_text())["median"]["point_estimate"] / 1e9 if path.exists() else None


def quotient(ours, theirs, form="{:.2f}x"):
    return form.format(ours / theirs) if ours and theirs else "-"


def number(value, form="{:,.0f}"):
    return form.format(value) if value else "-"


def row(work, theirs, ours, ratio):
    print(f"| {work} | {theirs} | {ours} | {ratio} |", flush=True)


def training(bench, base, rate):
    """Training steps at the best batch size of each program, over the same weights if the peer can write them."""
    given, folder = bench.given, bench.out / f"{base}-{bench.given.layers}-{bench.dtype}"
    theirs, ours, layers = [], [], {"layers": given.layers}
    shutil.rmtree(folder, ignore_errors=True)
    for rows in given.rows:
        save = [] if folder.exists() else ["--save", folder]
        step = bench.peer("step", "--base", base, "--layers", given.layers, "--batch", rows, "--length", given.tokens, *save)
        speed = step and step.found(r"train ([0-9.]+) tok")
        theirs += [(speed, step.most, rows)] if speed else []
    written = (folder / "config.json").exists()
    if base == "mistral" and not written:
        return row("LoRA training of Mistral-7B: needs the weights that the peer writes", "-", "-", "-")
    name = f"{bench.dtype}, loss on every token"
    for rows in given.rows:
        source = {"base": folder} if written else layers
        step = bench.own("training_step", name, rows=rows, tokens=given.tokens, **source)
        seconds = bench.median("training step", name)
        ours += [(rows * given.tokens / seconds, step.most, rows)] if step.ok and seconds else []
    nothing = (None, None, None)
    (their_speed, their_memory, their_rows), (speed, memory, rows) = max(theirs, default=nothing), max(ours, default=nothing)
    name = f"LoRA training, {base}, {given.layers} layers, rows of {given.tokens}"
    best = " and ".join(str(rows) for rows in (their_rows, rows) if rows)
    row(f"{name}, tokens/s (best of {best or 'no'} rows)", number(their_speed), number(speed), quotient(speed, their_speed))
    row("its memory, GB", number(their_memory, "{:.1f}"), number(memory, "{:.1f}"), quotient(memory, their_memory))
    if not (rate and written):
        return
    info = bench.kept("base info", Finished([given.lorakit, "base", "info", folder, "--json", "-q", "--device", "cpu"], "cpu"))
    if info.ok:
        info = json.loads(info.stdout)
        flops = FLOPS * (info["parameters"] - info["dimensions"]["vocabulary"] * info["dimensions"]["hidden"])
        share = [number(speed and speed * flops / rate / 1e10, "{:.0f} %") for speed in (their_speed, speed)]
        row(f"its share of the GPU's {rate:.0f} TFLOP/s in bf16", *share, "")


def library(bench):
    """Training of 32 experts on real tasks."""
    given = bench.given
    if not (given.base and given.tasks):
        return
    files = sorted(given.tasks.glob("*.json"))[:32]
    peer = bench.peer("library", given.base, given.tasks, "--experts", len(files))
    theirs = peer and peer.found(r"seconds ([0-9.]+)")
    target = bench.out / "library"
    shutil.rmtree(target, ignore_errors=True)
    settings = ["max_steps=100", "batch_size=16", "learning_rate=1e-3", "dropout=0", "eval_steps=0", "lr_scheduler=constant",
                "warmup_ratio=0", "max_grad_norm=1"]  # fmt: skip
    command = [given.lorakit, "-q", "--device", given.device, "--dtype", bench.dtype, "train-experts", "--base", given.base,
               "--tasks", *files, "--library", target, "--set", *settings]  # fmt: skip
    ours = bench.kept("train-experts", Finished(command, given.device))
    per_hour = [seconds and 3600 * len(files) / seconds for seconds in (theirs, ours.seconds if ours.ok else None)]
    row(f"a library of {len(files)} experts, experts per hour", *map(number, per_hour), quotient(*reversed(per_hour)))


def arrow(bench):
    """Prefill and decoding relative to the base's own time."""
    given = bench.given
    sizes = ",".join(map(str, EXPERTS))
    peer = bench.peer("arrow", "--experts", sizes, "--layers", given.arrow_layers, "--length", given.tokens)
    bench.own("arrow", "prefill", layers=given.arrow_layers, tokens=given.tokens)
    for size in EXPERTS:
        theirs = peer and peer.found(rf"experts {size}:.*arrow [0-9]+ ms \(([0-9.]+)x\)")
        ours = quotient(bench.median("prefill", f"arrow over {size}"), bench.median("prefill", "base"))
        row(f"Arrow over {size} experts, prefill of {given.tokens}, relative to the base", number(theirs, "{:.2f}x"), ours, "")
    bench.own("arrow", "decoding", layers=given.arrow_layers)
    for rows in ("", ", 32 rows"):
        ours = quotient(bench.median("decoding", f"arrow over 256{rows}"), bench.median("decoding", f"base{rows}"))
        row(f"Arrow over 256 experts, a decoded token{rows}, relative to the base", "-", ours, "")


def main():
    given = options()
    if given.device == "cuda" and not shutil.which("nvidia-smi"):
        raise SystemExit("nvidia-smi, which reports GPU name and memory, was not found; to try the script without a GPU, use --device cpu")
    if not pathlib.Path(given.lorakit).exists():
        raise SystemExit(f"{given.lorakit}: no such file; --lorakit names the binary")
    bench, rate = Bench(given), None
    if given.device == "cuda":
        gpu = Finished(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], "cpu")
        print(bench.kept("nvidia-smi", gpu).stdout)
        measured = given.python and bench.kept("matrix rate", Finished([given.python, "-c", RATE], given.device))
        rate = measured and measured.found(r"([0-9.]+)")
    print("| work | PEFT | lorakit | lorakit / PEFT |\n|---|---|---|---|", flush=True)
    for base in given.bases:
        training(bench, base, rate)
    library(bench)
    arrow(bench)
    if (bench.out / "failed.log").exists():
        print(f"\nFailures, including batches that did not fit in memory: {bench.out / 'failed.log'}")


main()
