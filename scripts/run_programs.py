#!/usr/bin/env python3
"""Runs the programs that a model wrote, in a sandbox, and prints the fraction that is right (pass@1).

KIND     humaneval  rows of HumanEval: the prompt with its completion, and the row's tests
         mbpp       rows of MBPP: the same, with the tests' imports
         gsm_hard   the text defines `solution()`, whose value must equal the row's target within 0.001, as in PAL
SAMPLES  a samples_ROUTER_TASK.jsonl of `lorakit eval --log-samples`, over a task of configs/tasks/programs.toml
RESULTS  the --out of that eval: `pass@1` of every router on the task KIND_programs is added to its results.json, for
         `lorakit compare`; not while an eval writes there

A completion is indented as in the code of "Towards Modular LLMs" (arXiv 2405.11157): an odd number of spaces gets one more.

Every program runs as a process of its own in new namespaces (user, mounts, processes, network): it sees the system's
libraries, read-only, and an empty /tmp of 16 MB, but no other file, no network and no other process, has no privileges, and
gets 10 s, 16 processes of 1 GB each, and 16 MB to print. If root starts this script, programs run as nobody. Where the system
does not allow such namespaces, nothing is run, and the exit code is 1.

Usage: scripts/run_programs.py KIND SAMPLES [--out FILE.json]
       scripts/run_programs.py KIND --results RESULTS
       scripts/run_programs.py --probe          exit code 0 if programs can be run here
       scripts/run_programs.py --check          what programs must not be able to do
"""

import argparse
import json
import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 10
PYTHON = "/usr/bin/python3"
VISIBLE = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"]
# Root's processes are not counted against their limit.
NOBODY = 65534
NAMESPACES = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]

# Runs as root of the new namespaces. The program is read from stdin, so that nothing of the host's is shared with it.
ENTER = r"""
set -e
root="$1"; shift
mount -t tmpfs -o size=16m,nosuid,nodev none "$root"
for folder in "$@"; do
    if [ -L "$folder" ]; then
        ln -s "$(readlink "$folder")" "$root$folder"
    elif [ -d "$folder" ]; then
        mkdir -p "$root$folder"
        mount --rbind "$folder" "$root$folder"
        mount -o remount,bind,ro,nosuid,nodev "$root$folder"
    fi
done
# In a namespace of its own the program would have privileges, such as to mount a larger /tmp.
echo 0 > /proc/sys/user/max_user_namespaces
mkdir "$root/tmp" "$root/old"
cd "$root"
pivot_root . old
# The command umount needs /proc. 2 is MNT_DETACH.
PYTHON -I -c 'import ctypes, os; assert not ctypes.CDLL(None).umount2(b"/old", 2); os.rmdir("/old")'
cd /tmp
ulimit -v 1048576 -f 16384 -n 64 -u 16 -t SECONDS -c 0
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all PYTHON -I -
""".replace("SECONDS", str(SECONDS)).replace("PYTHON", PYTHON)


class NoSandbox(Exception):
    """The system does not allow the namespaces."""


def run(program):
    """Runs a program, and returns its exit code and stdout; a code of None stands for one that took too long."""
    # What a program prints goes into a file, whose size is limited as that of its own files is.
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as printed:
        identity = {}
        if os.geteuid() == 0:
            os.chown(root, NOBODY, NOBODY)
            identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        command = ["unshare", *NAMESPACES, "/bin/bash", "-c", ENTER, "enter", root, *VISIBLE]
        try:
            done = subprocess.run(
                command,
                input=program.encode(),
                stdout=printed,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                timeout=2 * SECONDS,
                check=False,
                **identity,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        printed.seek(max(printed.seek(0, os.SEEK_END) - 4096, 0))
        return done.returncode, printed.read().decode(errors="replace")


def ensure_sandbox():
    """Raises NoSandbox unless a program runs, and sees neither this file nor a network."""
    probe = f"import os, socket\nassert not os.path.exists({str(Path(__file__).resolve())!r})\n"
    probe += "assert [name for _, name in socket.if_nameindex()] == ['lo']\nprint('inside')\n"
    try:
        code, text = run(probe)
    except FileNotFoundError as error:
        raise NoSandbox(str(error)) from error
    if (code, text.strip()) != (0, "inside"):
        raise NoSandbox(f"a probe in `unshare {' '.join(NAMESPACES)}` failed with exit code {code}")


def passes(program, expected=None):
    """Whether a program ends well, and prints the expected number last if there is one."""
    end = secrets.token_hex(16)
    code, text = run(f"{program}\nprint()\nprint({end!r})\n")
    lines = text.split("\n")
    if code != 0 or len(lines) < 3 or lines[-2] != end:
        return False
    if expected is None:
        return True
    try:
        return math.isclose(float([line for line in lines[:-2] if line][-1]), expected, rel_tol=0, abs_tol=1e-3)
    except (IndexError, ValueError):
        return False


def fenced(text):
    """The code of a text's first fenced block, or the text."""
    _, fence, rest = text.partition("```")
    return rest.partition("\n")[2].partition("```")[0] if fence else text


def completed(sample):
    """The prompt with its completion, whose indents are even."""
    even = re.sub("^ +", lambda indent: indent[0] + " " * (len(indent[0]) % 2), sample["generated"]["text"], flags=re.M)
    return sample["prompt"] + even


def is_right(kind, sample):
    """Whether the program of a sample is right."""
    fields = sample["fields"]
    if kind == "humaneval":
        return passes(f"{completed(sample)}\n{fields['test']}\ncheck({fields['entry_point']})")
    if kind == "mbpp":
        # The sanitized rows have imports of their tests, the others a text.
        tests = [*fields.get("test_imports", []), fields.get("test_setup_code", ""), *fields["test_list"]]
        return passes("\n".join([completed(sample), *tests]))
    return passes(f"{fenced(sample['generated']['text'])}\nprint(float(solution()))", float(fields["target"]))


def score(kind, samples):
    """The number of programs of a file, and the share that is right."""
    right = [is_right(kind, json.loads(line)) for line in samples.read_text(encoding="utf-8").split("\n") if line]
    n, value = len(right), sum(right) / max(len(right), 1)
    return n, {"value": value, "stderr": math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None}


def add_to_results(kind, folder):
    """Adds pass@1 to the results of every router on the task."""
    task, file = f"{kind}_programs", folder / "results.json"
    document = json.loads(file.read_text())
    routers = {router: tasks[task] for router, tasks in document["results"].items() if task in tasks}
    if not routers:
        sys.exit(f"{file}: no router was scored on {task}; evaluate configs/tasks/programs.toml:{task} with --log-samples")
    for router, result in routers.items():
        # As lorakit names the files.
        name = re.sub(r'[\s\x00-\x1f\x7f-\x9f"<>:/|\\?*\[\]]', "_", f"{router}_{task}")
        samples = folder / f"samples_{name}.jsonl"
        if not samples.is_file():
            sys.exit(f"{samples}: no such file; evaluate {router} on {task} again, with --log-samples")
        n, result["metrics"]["pass@1"] = score(kind, samples)
        if n != result["n"]:
            sys.exit(f"{samples}: {n} samples; expected {result['n']}, as in {file}; evaluate {router} on {task} again")
        print(f"{router}: {result['metrics']['pass@1']['value']:.4f} of {n}")
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document, indent=2) + "\n")
    new.replace(file)


def check():
    """Runs what must work, and what must not be possible."""
    here = Path(__file__).resolve()
    for program, right in [
        ("assert sorted([2, 1]) == [1, 2]", True),
        ("assert False", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("while True: pass", False),
        ("x = bytearray(2 << 30)", False),
        ("while True: open('/tmp/x', 'ab').write(bytes(1 << 20))", False),
        (f"open({str(here)!r})", False),
        ("open('/etc/passwd')", False),
        ("open('/usr/x', 'w')", False),
        ("import os; os.chroot('/tmp')", False),
        ("import ctypes; assert not ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)", False),
        ("import ctypes; assert not ctypes.CDLL(None).unshare(0x10000000)", False),
        ("import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(60)", False),
        ("while True: print('x' * 4096)", False),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 3)", False),
        (f"import os; os.kill({os.getpid()}, 0)", False),
        ("import os; os.stat('/old')", False),
        ("open('/tmp/x', 'w').write('x')", True),
    ]:
        assert passes(program) == right, program
    row = {"prompt": "def add(a, b):\n", "generated": {"text": "    return a + b"}}
    row["fields"] = {"test": "def check(f):\n    assert f(1, 2) == 3\n", "entry_point": "add"}
    assert is_right("humaneval", row)
    row["generated"]["text"] = "    return a - b"
    assert not is_right("humaneval", row)
    text = "Here:\n```python\ndef solution():\n    return 7 * 6\n```"
    assert is_right("gsm_hard", {"fields": {"target": 42}, "generated": {"text": text}})
    assert not is_right("gsm_hard", {"fields": {"target": 43}, "generated": {"text": text}})
    fields = {"test_imports": ["import math"], "test_list": ["assert double(math.pi) == math.tau"]}
    row = {"prompt": "def double(x):\n", "fields": fields, "generated": {"text": "   y = 2 * x\n    return y"}}
    assert is_right("mbpp", row)
    check_results(row)
    print("programs run, and are kept in")


def check_results(row):
    """Scores a folder as an evaluation writes it, of one right program."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        results = {"a:b=c": {"mbpp_programs": {"n": 1, "metrics": {}}, "other": {"n": 1, "metrics": {}}}, "base": {}}
        (folder / "results.json").write_text(json.dumps({"results": results, "config": {"seed": 0}}))
        row["generated"]["text"] += "  # one\u2028line"  # as lorakit writes it, unescaped
        samples = folder / "samples_a_b=c_mbpp_programs.jsonl"
        samples.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        add_to_results("mbpp", folder)
        results["a:b=c"]["mbpp_programs"]["metrics"]["pass@1"] = {"value": 1.0, "stderr": None}
        assert json.loads((folder / "results.json").read_text()) == {"results": results, "config": {"seed": 0}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=["humaneval", "mbpp", "gsm_hard"])
    parser.add_argument("samples", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.check or arguments.probe):
        ensure_input(parser, arguments)
    try:
        ensure_sandbox()
    except NoSandbox as error:
        message = f"there is no sandbox here, so that no program is run: {error}"
        return print(f"skipped: {message}") if arguments.check else sys.exit(message)
    if arguments.check:
        return check()
    if arguments.probe:
        return None
    if arguments.results:
        return add_to_results(arguments.kind, arguments.results)
    n, passed = score(arguments.kind, arguments.samples)
    document = json.dumps({"n": n, "pass@1": passed})
    if arguments.out:
        arguments.out.write_text(document + "\n")
    print(document)
    return None


def ensure_input(parser, arguments):
    """Refuses arguments without a kind, or without exactly one thing to score."""
    if arguments.kind is None or (arguments.samples is None) == (arguments.results is None):
        parser.error("KIND is needed, and either SAMPLES or --results RESULTS")
    if arguments.results and not (arguments.results / "results.json").is_file():
        parser.error(f"{arguments.results}: no results.json in it; expected the --out of `lorakit eval --log-samples`")
    if arguments.samples and not arguments.samples.is_file():
        parser.error(f"{arguments.samples}: no such file; expected the samples that `lorakit eval --log-samples` writes")


if __name__ == "__main__":
    main()
