#!/usr/bin/env bash
# Fetches LibTorch from the Python package index that pip is set up for, and lays it out as torch-sys wants it.
#
#   deploy/libtorch.sh FOLDER          CPU only: 0.4 GB, none of the libraries for GPUs
#   deploy/libtorch.sh FOLDER cuda     with CUDA: 4 GB, for machines that have a driver
#
# Then:
#   LIBTORCH=FOLDER cargo build --release --features tch
#   LD_LIBRARY_PATH=FOLDER/lib target/release/retort worker --device tch:cpu …
#
# PYTHON names the interpreter whose pip fetches; the wheels are unpacked, nothing is installed.
set -euo pipefail
folder=${1:?usage: libtorch.sh FOLDER [cuda]}
kind=${2:-cpu}
[[ $kind == cpu || $kind == cuda ]] || { echo "the second argument is cuda or nothing, not $kind" >&2; exit 2; }
python=${PYTHON:-python3}
version=2.9.1 # what the tch crate in Cargo.lock is made for

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
fetch() { "$python" -m pip download --quiet --only-binary :all: --dest "$wheels" "$@"; }
unpack() { "$python" -m zipfile -e "$1" "$wheels/unpacked"; }

if [[ $kind == cuda ]]; then
    # All that the wheel depends on: cuBLAS, cuDNN and the others.
    fetch "torch==$version"
else
    fetch --no-deps "torch==$version"
    # libtorch_cpu.so of the common wheel is linked against these two small ones.
    fetch --no-deps nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-cupti-cu12==12.8.90
fi
for wheel in "$wheels"/torch-*.whl "$wheels"/nvidia_*.whl; do
    [[ -e $wheel ]] && unpack "$wheel"
done

torch=$wheels/unpacked/torch
rm -rf "$folder/include" "$folder/lib"
mv "$torch/include" "$folder/include"
mkdir "$folder/lib"
if [[ $kind == cuda ]]; then
    mv "$torch"/lib/*.so* "$folder/lib/"
    find "$wheels/unpacked/nvidia" -name '*.so*' -exec mv -t "$folder/lib" {} +
else
    mv "$torch"/lib/libtorch_cpu.so "$torch"/lib/libc10.so "$torch"/lib/libgomp* "$folder/lib/"
    find "$wheels/unpacked/nvidia" \( -name 'libcudart.so.12' -o -name 'libcupti.so.12' \) -exec mv -t "$folder/lib" {} +
    # torch-sys asks the linker for this name; everything is in libtorch_cpu.so.
    printf '' | ${CC:-cc} -shared -x c - -o "$folder/lib/libtorch.so"
fi
echo "$version" >"$folder/torch-version"
echo "LibTorch $version ($kind) lies in $folder; build with LIBTORCH=$folder, run with LD_LIBRARY_PATH=$folder/lib"
