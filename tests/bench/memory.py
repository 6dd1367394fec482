#!/usr/bin/env python3
"""Peak memory of each process of a whole job, over a corpus and over one COPIES times as large.

    python3 tests/bench/memory.py --retort target/release/retort --spec examples/quickstart.toml --copies 10

The corpus (BEIR layout) is repeated under altered ids and with altered texts, so that nothing of it is cached or taken for a
duplicate; questions and judgements stay. Needs Python alone, and Linux' /proc: the figure is VmHWM, the most that was ever
resident. Arguments after `--` go to `retort run`.
"""

import argparse
import gzip
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import tomllib


def opened(path, mode):
    return gzip.open(path, mode, encoding="utf-8") if path.suffix == ".gz" else open(path, mode, encoding="utf-8")


def repeat(corpus, copies, folder):
    """Writes the corpus `copies` times into a folder of its own; the passages of it."""
    source = next(corpus.glob("corpus.jsonl*"))
    for path in corpus.iterdir():
        if path != source:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    passages = 0
    with opened(folder / source.name, "wt") as out:
        for copy in range(copies):
            with opened(source, "rt") as lines:
                for line in lines:
                    record = json.loads(line)
                    if copy:
                        record["_id"] = f"{record['_id']}-{copy}"
                        record["text"] = f"{record['text']} ({copy})"
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
                    passages += 1
    return passages


def children(pid):
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, task.read_text().split())


def peak_mb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def run(retort, spec, corpus, folder, extra):
    """Runs the job to its end; the peak of each of its processes in MiB."""
    command = [retort, "run", spec, "--set", f"corpus.path={corpus}", "--store", folder / "store", *extra]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {}
    while job.poll() is None:
        for pid in [job.pid, *children(job.pid)]:
            try:
                role = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1].decode()
                peaks[pid] = (role, peak_mb(pid))
            except (OSError, IndexError):
                continue  # it has ended; what was seen last stands
        time.sleep(0.2)
    if job.returncode:
        raise SystemExit(f"the job ended with exit code {job.returncode}")
    return sorted(peaks.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", default="target/release/retort")
    parser.add_argument("--spec", type=pathlib.Path, default=pathlib.Path("examples/quickstart.toml"))
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("extra", nargs="*", help="more arguments of `retort run`")
    args = parser.parse_args()
    corpus = args.spec.parent / tomllib.loads(args.spec.read_text())["corpus"]["path"]
    for copies in (1, args.copies):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "corpus").mkdir()
            passages = repeat(corpus, copies, folder / "corpus")
            begun = time.monotonic()
            peaks = run(args.retort, args.spec, folder / "corpus", folder, args.extra)
            said = ", ".join(f"{role} {peak:.0f}" for role, peak in peaks)
            print(f"{passages} passages, {time.monotonic() - begun:.0f} s: peak MiB {said}", flush=True)


if __name__ == "__main__":
    main()
