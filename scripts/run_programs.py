#!/usr/bin/env python3
"""Runs the programs that a model wrote, in a sandbox, and prints the fraction that is right (pass@1).

KIND     humaneval  rows of HumanEval: the prompt with its completion, and the row's tests
         mbpp       rows of MBPP: the generated text, and the row's tests
         gsm_hard   the text defines `solution()`, whose value must equal the row's target within 0.001, as in PAL
SAMPLES  a samples_ROUTER_TASK.jsonl of `lorakit eval --log-samples`, over a task of configs/tasks/programs.toml

Every program runs as a process of its own in new namespaces (user, mounts, processes, network): it sees the system's
libraries, read-only, and an empty /tmp of 16 MB, but no other file, no network and no other process, has no privileges, and
gets 10 s, 16 processes of 1 GB each, and 16 MB to print. If root starts this script, programs run as nobody. Where the system
does not allow such namespaces, nothing is run, and the exit code is 1.

Usage: scripts/run_programs.py KIND SAMPLES [--out FILE.json]
       scripts/run_programs.py --check          what programs must not be able to do
"""

import argparse
import json
import math
import os
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


def is_right(kind, sample):
    """Whether the program of a sample is right."""
    fields, text = sample["fields"], sample["generated"]["text"]
    if kind == "humaneval":
        return passes(f"{sample['prompt']}{text}\n{fields['test']}\ncheck({fields['entry_point']})")
    if kind == "mbpp":
        # The sanitized rows have imports of their tests, the others a text.
        tests = [*fields.get("test_imports", []), fields.get("test_setup_code", ""), *fields["test_list"]]
        return passes("\n".join([fenced(text), *tests]))
    return passes(f"{fenced(text)}\nprint(float(solution()))", float(fields["target"]))


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
    assert is_right("mbpp", {"fields": fields, "generated": {"text": "def double(x):\n    return 2 * x"}})
    print("programs run, and are kept in")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=["humaneval", "mbpp", "gsm_hard"])
    parser.add_argument("samples", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check and arguments.samples is None:
        parser.error("KIND and SAMPLES are needed")
    if not arguments.check and not arguments.samples.is_file():
        parser.error(f"{arguments.samples}: no such file; expected the samples that `lorakit eval --log-samples` writes")
    try:
        ensure_sandbox()
    except NoSandbox as error:
        message = f"there is no sandbox here, so that no program is run: {error}"
        return print(f"skipped: {message}") if arguments.check else sys.exit(message)
    if arguments.check:
        return check()
    samples = [json.loads(line) for line in arguments.samples.read_text().splitlines()]
    right = [is_right(arguments.kind, sample) for sample in samples]
    n, value = len(right), sum(right) / max(len(right), 1)
    error = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None
    document = json.dumps({"n": n, "pass@1": {"value": value, "stderr": error}})
    if arguments.out:
        arguments.out.write_text(document + "\n")
    print(document)


if __name__ == "__main__":
    main()
