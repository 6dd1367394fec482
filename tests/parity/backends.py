"""The same job on two backends: embeddings within 1e-4, metrics within 0.002, and on each the same bits with one worker and two.

    backends.py --retort target/release/retort [--devices flex,tch:cpu] [--work FOLDER]

The binary must be built with the features of the devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
EMBEDDINGS = 1e-4
METRICS = 0.002
LOSSES = 1e-3


def run(retort, device, workers, folder):
    store = os.path.join(folder, f"{device.replace(':', '-')}-{workers}")
    command = [retort, "run", os.path.join(HERE, "backends.toml"), "--store", store, "--device", device]
    command += ["--workers", str(workers), "--output", "json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    (job,) = os.listdir(os.path.join(store, "jobs"))
    out = os.path.join(folder, f"vectors-{device.replace(':', '-')}-{workers}")
    command = [retort, "export", job, "teacher", "--format", "npy", "--store", store, "--out", out]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return report, vectors(out), digests(store), curves(store)


def curves(store):
    """Loss curves of the trainings, by their number of steps."""
    found = {}
    for path, _, names in os.walk(os.path.join(store, "artifacts")):
        if "curve.json" in names:
            with open(os.path.join(path, "curve.json"), encoding="utf-8") as file:
                losses = [point["loss"] for point in json.load(file)]
            found[len(losses)] = losses
    return found


def vectors(folder):
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".npy"):
                full = os.path.join(path, name)
                found[os.path.relpath(full, folder)] = np.load(full)
    return found


def digests(store):
    """What every artifact of floats holds: the digests of its parts by its task."""
    found = {}
    for path, _, names in os.walk(os.path.join(store, "artifacts")):
        for name in names:
            if name.startswith("manifest."):
                with open(os.path.join(path, name), encoding="utf-8") as file:
                    manifest = json.load(file)
                parts = manifest["parts"]
                key = os.path.relpath(path, store)
                # The report holds times.
                if "/report/" not in key + "/":
                    found[key] = sorted((part["name"], part["sha256"]) for part in parts)
    return found


def numbers(value, path=""):
    """Every metric of a report: means by row, set and name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{at}")
    elif isinstance(value, float) and any(metric in path for metric in ("mrr@", "ndcg@", "recall@")):
        yield path, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", default="target/release/retort")
    parser.add_argument("--devices", default="flex,tch:cpu")
    parser.add_argument("--work")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or temporary
        results = {}
        for device in args.devices.split(","):
            results[device] = run(args.retort, device, 1, folder)
            again = run(args.retort, device, 2, folder)
            same = results[device][2] == again[2]
            print(f"{device}: {len(again[2])} artifacts, {'the same' if same else 'OTHER'} bits with two workers")
            failed |= not same
        first, *others = results
        for other in others:
            a, b = results[first], results[other]
            worst = max(float(np.abs(a[1][name] - b[1][name]).max()) for name in a[1] if a[1][name].dtype.kind == "f")
            means_a, means_b = dict(numbers(a[0])), dict(numbers(b[0]))
            # Significance and intervals are not means.
            shared = [path for path in means_a if path in means_b and "/means" in path or path.endswith("/value")]
            shared = shared or [path for path in means_a if path in means_b]
            apart, where = max((abs(means_a[path] - means_b[path]), path) for path in shared)
            print(f"{first} and {other}: embeddings {worst:.1e} apart, {len(shared)} metrics {apart:.4f} apart ({where})")
            pairs = [pair for steps in a[3] for pair in zip(a[3][steps], b[3][steps])]
            loss = max(abs(x - y) / max(abs(x), abs(y)) for x, y in pairs)
            print(f"{first} and {other}: losses of {len(pairs)} steps {loss:.1e} apart, relative")
            failed |= worst > EMBEDDINGS or apart > METRICS or loss > LOSSES
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
