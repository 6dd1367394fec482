#!/usr/bin/env bash
# Runs a command with LibTorch from a folder that libtorch.sh made, after a look at that folder.
#
#   deploy/with-libtorch.sh /opt/libtorch retort worker --device tch:cpu …
set -euo pipefail
(($# >= 2)) || { echo 'usage: with-libtorch.sh FOLDER COMMAND…' >&2; exit 2; }
folder=$1
shift
remedy="fetch it with deploy/libtorch.sh $folder"
[[ -d $folder/lib ]] || { echo "LibTorch is not in $folder: there is no folder lib; $remedy" >&2; exit 1; }
for library in libtorch_cpu.so libc10.so libtorch.so; do
    [[ -e $folder/lib/$library ]] || { echo "LibTorch in $folder lacks lib/$library; $remedy" >&2; exit 1; }
done
export LD_LIBRARY_PATH=$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
program=$(command -v "$1") || { echo "$1: no such command" >&2; exit 127; }
if missing=$(ldd "$program" 2>/dev/null | grep 'not found'); then
    echo "$program still lacks libraries with LibTorch from $folder:" >&2
    echo "$missing" >&2
    exit 1
fi
exec "$@"
