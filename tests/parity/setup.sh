#!/bin/sh
# Makes a virtual environment with the Python oracles (ir-measures, faiss, bm25s,
# PyTorch on the CPU, transformers, sentence-transformers) from pip's index.
# usage: setup.sh VENV_DIR      needs Python 3.11, cc and binutils
set -eu
venv=${1:?usage: setup.sh VENV_DIR}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps -r "$here/requirements.txt"
site_packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" "$here/make_stubs.py" "$site_packages"
"$venv/bin/python" -c 'import bm25s, faiss, ir_measures, sentence_transformers, torch; print("torch", torch.__version__)'
