#!/usr/bin/env python3
"""Trains libraries of the bundled base by parts at once while it kills them, and compares bytes with one command's.

Each process gets a fault at a random moment: SIGKILL, SIGTERM, SIGUSR1, a disk that is full (a limit on the size of files), a
pause (SIGSTOP) after which it goes on beside its successor, or a clock that jumps (all files get times of weeks ago or to come).
Now and then two processes have the same number. At the end of each library all parts run undisturbed; then the experts must
be those of one command byte for byte, every step logged once, and nothing temporary left.

    scripts/part_faults.py target/release/lorakit --kills 1000
    scripts/part_faults.py target/release/lorakit --experts 6 --parts 2 --kills 10
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

FAULTS = ["KILL"] * 5 + ["TERM"] * 2 + ["USR1", "full", "pause", "clock"]
SETTINGS = [
    "max_steps=6", "batch_size=4", "rank=2", "dropout=0.1", "learning_rate=1e-2", "eval_steps=3", "save_steps=1",
    "experts_per_pass=1", "max_length=48",
]
# Smaller than an expert's weights, so that storing one fails and messages do not.
FULL_BYTES = 8192


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorakit", type=Path)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--kills", type=int, default=1000, help="processes to end or pause, over as many libraries as it takes")
    parser.add_argument("--lifetime", type=float, default=2.0, help="seconds within which a process gets its fault")
    parser.add_argument("--lease", type=int, help="seconds of leases, in place of the system's locks")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write_tasks(folder, count):
    folder.mkdir()
    for index in range(count):
        rows = [{"input": f"task {index} of {row}", "output": str((row * 7 + index) % 31)} for row in range(20 + index % 5)]
        (folder / f"e{index:02}.json").write_text(json.dumps(rows))
    return sorted(map(str, folder.iterdir()))


def products(library):
    """The bytes of all files but runs and hidden ones, by path."""
    paths = (path.relative_to(library) for path in library.rglob("*") if path.is_file())
    kept = [path for path in paths if path.parts[0] != "runs" and not any(part.startswith(".") for part in path.parts)]
    return {path: (library / path).read_bytes() for path in kept}


def log_lines(library):
    return sorted(line for log in (library / "runs").rglob("log.jsonl") for line in log.read_text().splitlines())


def leftovers(library):
    return [path for path in library.rglob("*") if path.name.startswith((".new", ".old", "pass-"))]


def jump(library, seconds):
    """Moves the times of all files, locks and leases among them, by some seconds."""
    for folder, _, names in os.walk(library):
        for name in names:
            # Others remove files meanwhile.
            with suppress(FileNotFoundError):
                os.utime(os.path.join(folder, name), times=(time.time() + seconds,) * 2)


class Part:
    """A process that trains a part, and its fault."""

    def __init__(self, command, index, given, chance, library):
        self.index, self.fault, self.library = index, chance.choice(FAULTS), library
        self.seconds = chance.uniform(-1e6, 1e6)
        # A lease's owner is silent for longer than a lease, and wakes after another has taken over.
        self.pause = 0.2 if given.lease is None else 2 * given.lease
        self.moment = time.monotonic() + chance.uniform(0, given.lifetime)
        full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=full if self.fault == "full" else None
        )

    def disturb(self):
        """Sends the fault if it is due; returns its name if the process was alive to receive it."""
        if self.fault in (None, "full") or time.monotonic() < self.moment or self.process.poll() is not None:
            return None
        sent, self.fault = self.fault, None
        if sent == "pause":
            self.process.send_signal(signal.SIGSTOP)
            self.fault, self.moment = "CONT", time.monotonic() + self.pause
        elif sent == "clock":
            jump(self.library, self.seconds)
        else:
            self.process.send_signal(getattr(signal, f"SIG{sent}"))
        return None if sent == "CONT" else sent

    def check(self, fault_seen):
        """Ends the program on an exit that no fault explains."""
        code, said = self.process.returncode, self.process.stderr.read()
        allowed = {0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}
        explained = code == 1 and ("File too large" in said or "taken over by process" in said)
        if code not in allowed and not explained:
            sys.exit(f"part {self.index}: exit code {code} after {fault_seen}: {said}")


def train_disturbed(command, library, given, chance, budget):
    """Trains until every part has ended by itself, or the budget of faults is spent; returns the faults."""
    seen, running, done = Counter(), [], set()
    try:
        while len(done) < given.parts and sum(seen.values()) < budget:
            missing = [index for index in range(given.parts) if index not in done | {part.index for part in running}]
            if chance.random() < 0.02:
                missing.append(chance.randrange(given.parts))
            running += [Part(command(library, f"{index}/{given.parts}"), index, given, chance, library) for index in missing]
            time.sleep(0.01)
            for part in running:
                fault = part.disturb()
                seen.update([fault] if fault else [])
            ended = [part for part in running if part.process.poll() is not None]
            for part in ended:
                part.check(seen)
                # Its disk was full: it said so, and ended. Without such a disk it lost its lease.
                seen.update(["full"] if part.process.returncode == 1 and part.fault == "full" else [])
                done |= {part.index} if part.process.returncode == 0 else set()
            running = [part for part in running if part not in ended]
    finally:
        # After an error too: a paused one would stay for ever.
        for part in running:
            part.process.kill()
            part.process.wait()
    seen.update(["KILL"] * len(running))
    return seen


def main():
    given = arguments()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        tasks = write_tasks(work / "tasks", given.experts)

        def command(library, part=None):
            words = [given.lorakit, "-q", "train-experts", "--threads", "1", "--base", "pico", "--library", library, "--tasks", *tasks]
            words += ["--set", *SETTINGS]
            return list(map(str, words + (["--part", part] if part else [])))

        one = work / "one" / "library"
        subprocess.run(command(one), check=True, stdout=subprocess.DEVNULL)
        expected, steps = products(one), log_lines(one)
        print(f"{given.experts} experts by one command: {len(expected)} files, {len(steps)} steps", flush=True)
        total, libraries = Counter(), 0
        while sum(total.values()) < given.kills:
            library = work / f"by_parts_{libraries}" / "library"
            if given.lease is not None:
                library.mkdir(parents=True)
                (library / ".lease").write_text(f"{given.lease}\n")
            total += train_disturbed(command, library, given, chance, given.kills - sum(total.values()))
            at_once = [subprocess.Popen(command(library, f"{i}/{given.parts}"), stdout=subprocess.DEVNULL) for i in range(given.parts)]
            codes = [process.wait() for process in at_once]
            if any(codes) or products(library) != expected or log_lines(library) != steps or leftovers(library):
                kept = tempfile.mkdtemp(prefix="part_faults_")
                os.rename(library, kept)
                sys.exit(f"library {libraries} after {dict(total)}: exit codes {codes}, kept as {kept}")
            libraries += 1
            print(f"{libraries} libraries by {given.parts} parts, the same bytes after {dict(total)}", flush=True)


if __name__ == "__main__":
    main()
