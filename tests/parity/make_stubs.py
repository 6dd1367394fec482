#!/usr/bin/env python3
"""Make torch's PyPI wheel importable for CPU work without the nvidia wheels.

The wheel's libtorch_cuda.so names some 3 GB of nvidia libraries that the dynamic
linker must find even where no GPU is used. For each one that is absent this
compiles a shared library of the same name next to libtorch, whose functions only
return an error code. They satisfy the linker and are never called on a CPU.

usage: make_stubs.py SITE_PACKAGES
needs: a C compiler (cc), objdump and nm
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

# The driver, libcuda.so.1, comes with no wheel: torch loads without it.
VENDOR_LIBRARY = re.compile(r"lib(cu|nv|nccl)(?!da\.so)")
VENDOR_SYMBOL = re.compile(r"^(cu|nv|p?nccl)|nvshmem")
# cudaErrorUnknown; every vendor library takes a non-zero code for a failure.
STUB_BODY = "int {name}(void) {{ return 999; }}\n"


def main() -> None:
    site_packages = pathlib.Path(sys.argv[1])
    torch_lib = site_packages / "torch" / "lib"
    torch_libraries = sorted(torch_lib.glob("*.so*"))
    present = {path.name for path in torch_libraries}
    present |= {path.name for path in site_packages.glob("nvidia/*/lib/*.so*")}

    nodes_of_library = collections.defaultdict(set)
    defined, undefined = set(), set()
    for path in torch_libraries:
        for library, nodes in wanted_libraries(path).items():
            nodes_of_library[library] |= nodes
        path_defined, path_undefined = dynamic_symbols(path)
        defined |= path_defined
        undefined |= path_undefined

    missing = {
        library: nodes
        for library, nodes in nodes_of_library.items()
        if VENDOR_LIBRARY.match(library) and library not in present
    }
    unversioned = {
        name
        for name, node in undefined
        if not node and name not in defined and VENDOR_SYMBOL.search(name)
    }
    for library, nodes in sorted(missing.items()):
        symbols = {node: {n for n, v in undefined if v == node} for node in nodes}
        # Which library owns an unversioned symbol is not recorded, so that each
        # library without version nodes carries them all.
        build_stub(torch_lib / library, symbols, set() if nodes else unversioned)
        print(f"stub for {library}")


def output_of(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True
    ).stdout


def wanted_libraries(path: pathlib.Path) -> dict[str, set[str]]:
    """Library name -> version nodes that `path` requires of it."""
    wanted: dict[str, set[str]] = {}
    current = None
    for line in output_of("objdump", "-p", path).splitlines():
        if needed := re.match(r"\s+NEEDED\s+(\S+)", line):
            wanted.setdefault(needed[1], set())
        elif source := re.match(r"\s+required from (\S+):", line):
            current = source[1]
        elif node := re.match(r"\s+0x\w+ 0x\w+ \d+ (\S+)", line):
            if current:
                wanted.setdefault(current, set()).add(node[1])
        else:
            current = None
    return wanted


def dynamic_symbols(path: pathlib.Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Names that `path` defines, and (name, version node) pairs that it lacks."""
    defined, undefined = set(), set()
    for line in output_of("nm", "-D", "--with-symbol-versions", path).splitlines():
        fields = line.split()
        name, _, node = fields[-1].partition("@")
        if len(fields) == 2 and fields[0] in "Uw":
            undefined.add((name, node.lstrip("@")))
        else:
            defined.add(name)
    return defined, undefined


def build_stub(
    target: pathlib.Path, symbols: dict[str, set[str]], unversioned: set[str]
) -> None:
    names = sorted(unversioned.union(*symbols.values()))
    version_script = "".join(
        f"{node} {{ global: {' '.join(f'{name};' for name in sorted(of_node))} }};\n"
        for node, of_node in sorted(symbols.items())
    )
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch, "stub.c")
        source.write_text("".join(STUB_BODY.format(name=name) for name in names))
        command = ["cc", "-shared", "-fPIC", "-nostdlib", "-w", "-o", target, source]
        command.append(f"-Wl,-soname,{target.name}")
        if version_script:
            script = pathlib.Path(scratch, "stub.map")
            script.write_text(version_script)
            command.append(f"-Wl,--version-script={script}")
        output_of(*command)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
