"""Whether torch.compile has what it needs on this machine, found out before it fails in the middle of a run."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch


def require_compiler() -> None:
    """Returns where torch.compile can work.

    Raises:
        ValueError: no C++ compiler, no Python headers, or a CUDA device without Triton; says what to install.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise ValueError(
            f"compile: torch.compile needs a C++ compiler, and there is no {compiler}: install one (Debian, Ubuntu: "
            "apt-get install g++), name one in the environment variable CXX, or switch compile off"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise ValueError(
            f"compile: torch.compile needs Python's headers, and {headers} has no Python.h: install them (Debian, "
            "Ubuntu: apt-get install python3-dev), or switch compile off"
        )
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise ValueError("compile: torch.compile needs the package triton on a GPU: install it, or switch compile off")
