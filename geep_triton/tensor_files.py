"""Reads safetensors files that may be damaged, and computes digests of their contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

LFS = b"version https://git-lfs.github.com/spec/"


@contextmanager
def open_tensors(path: str | os.PathLike) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        ValueError: the file is damaged, or it is a git LFS pointer to a file.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}") from error


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and all tensors of a safetensors file.

    Raises:
        ValueError: as `open_tensors`.
    """
    with open_tensors(path) as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping


def refuse_pointer(path: str | os.PathLike) -> None:
    """Raise ValueError for a git LFS pointer, which stands for a large file until that is fetched."""
    with Path(path).open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path} is a git LFS pointer, not the file itself: run 'git lfs pull' in its repository")


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and values."""
    return _digest(_line(name, tensor) for name, tensor in tensors.items())


def files_digest(files: Mapping[str, str | os.PathLike]) -> str:
    """`tensors_digest` of tensors in files (name -> file), with one tensor in memory at a time.

    Raises:
        ValueError: a file is damaged.
    """
    lines = []
    for path in sorted({str(path) for path in files.values()}):
        with open_tensors(path) as file:
            lines += [_line(name, file.get_tensor(name)) for name in files if str(files[name]) == path]
    return _digest(lines)


def _line(name: str, tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
