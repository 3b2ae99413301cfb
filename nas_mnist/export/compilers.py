"""The C export compiled: by this machine's compiler to run it, for a Cortex-M4 to see its sections' sizes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import NoResultError
from .c_source import identifier

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
_MAIN = """
#include <stdio.h>
#include "{stem}.h"
int main(void)
{{
    static uint8_t image[{macro}_PIXELS];
    int16_t scores[{macro}_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {{
        {name}_classify(image, scores);
        fwrite(scores, sizeof scores[0], {macro}_CLASSES, stdout);
    }}
    return 0;
}}
"""


def host_compiler() -> str | None:
    """The path of a C compiler for this machine: $CC, cc, gcc or clang; None without one."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def run_c(compiler: str, files: Mapping[str, bytes], images: Tensor) -> Tensor:
    """Class scores (N, classes) int16 of uint8 images (N, C, H, W) by the compiled file, on all cores."""
    stem = next(name.removesuffix(".c") for name in files if name.endswith(".c"))
    name = identifier(stem)
    with tempfile.TemporaryDirectory() as folder:
        main, program = Path(folder) / "read_images.c", Path(folder) / "read_images"
        main.write_text(_MAIN.format(stem=stem, name=name, macro=name.upper()))
        _compile([compiler, *STRICT, "-O3"], files, Path(folder), [str(main), "-o", str(program)])
        parts = []
        for number, part in enumerate(images.chunk(os.cpu_count() or 1)):
            source, target = (Path(folder) / f"{number}.{kind}" for kind in ("images", "scores"))
            source.write_bytes(part.contiguous().numpy().tobytes())
            with source.open("rb") as pixels, target.open("wb") as scores:
                parts.append((subprocess.Popen([program], stdin=pixels, stdout=scores), target))
        ended = [process.wait() for process, _ in parts]
        if failed := [code for code in ended if code]:
            raise NoResultError(f"the compiled C ended with code {failed[0]}")
        found = bytearray().join(target.read_bytes() for _, target in parts)
    return torch.frombuffer(found, dtype=torch.int16).view(len(images), -1)


def cortex_sizes(files: Mapping[str, bytes]) -> str:
    """Bytes of the sections as compiled for a Cortex-M4, in words; says so where there is no compiler."""
    if importlib.util.find_spec("ziglang"):
        title = "zig cc"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding", "-mcpu=cortex_m4"]
    elif found := shutil.which("arm-none-eabi-gcc"):
        title, command = "gcc", [found, "-mcpu=cortex-m4", "-mthumb"]
    else:
        return "Cortex-M4: not compiled (pip install 'nas-mnist[cortex]', or arm-none-eabi-gcc)"
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "network.o"
        _compile([*command, *STRICT, "-Os", "-c"], files, Path(folder), ["-o", str(compiled)])
        text, data, bss = section_sizes(compiled.read_bytes())
    return f"Cortex-M4 ({title} -Os): text {text:,}, data {data:,}, bss {bss:,} bytes"


def _compile(command: Sequence[str], files: Mapping[str, bytes], folder: Path, rest: Sequence[str]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    source = next(str(folder / name) for name in files if name.endswith(".c"))
    done = subprocess.run([*command, source, *rest], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoResultError(f"{command[0]} cannot compile the export: {done.stderr.strip()[-200:]}")


def section_sizes(content: bytes) -> tuple[int, int, int]:
    """Bytes of code and constants, of initialised data, and of zeroed data in a 32-bit ELF file."""
    start = struct.unpack_from("<I", content, 32)[0]
    size, count = struct.unpack_from("<HH", content, 46)
    text = data = bss = 0
    for number in range(count):
        _, kind, flags, _, _, length = struct.unpack_from("<6I", content, start + number * size)
        if not flags & 2:  # takes no memory
            continue
        if kind == 8:  # has no content in the file
            bss += length
        elif flags & 1:
            data += length
        else:
            text += length
    return text, data, bss
