"""Selects which of torch's attention kernels run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class _Switch:
    """torch's process-wide switch for cuDNN's attention. It is off as long as anybody holds it."""

    def __init__(self) -> None:
        self._lock, self._holders, self._before = Lock(), 0, True

    def hold(self) -> None:
        with self._lock:
            if not self._holders:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                torch.backends.cuda.enable_cudnn_sdp(self._before)


_SWITCH = _Switch()


@contextmanager
def attention_kernels(cudnn: bool) -> Iterator[None]:
    """Run attention on torch's flash, memory-efficient or plain kernels within the block, and on cuDNN's only if `cudnn`.

    On an H100 or H200, torch from 2.10 on prefers cuDNN, which builds a plan (50 ms or more) for every new (batch, length).
    Shrinking batches keep making new shapes. The kernel is fixed when a layer is compiled or recorded, so that has to happen
    within the block too. With `cudnn`, torch's own choice stays as the user has set it.
    """
    if cudnn:
        yield
        return
    _SWITCH.hold()
    try:
        yield
    finally:
        _SWITCH.release()
