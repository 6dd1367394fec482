"""Packs an exported student as the quickstart's teacher: the same folder with its weights in half precision.

usage: make_teacher.py EXPORTED_FOLDER OUT_FOLDER
needs: numpy, safetensors
"""

import pathlib
import shutil
import sys

import numpy
from safetensors.numpy import load_file, save_file


def main() -> None:
    source, target = map(pathlib.Path, sys.argv[1:3])
    shutil.copytree(source, target, dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    half = {name: values.astype(numpy.float16) for name, values in weights.items()}
    if not all(numpy.isfinite(values).all() for values in half.values()):
        sys.exit("a weight does not fit half precision")
    save_file(half, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{total:,} bytes in {target}")


if __name__ == "__main__":
    main()
