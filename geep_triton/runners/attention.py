"""Which of torch's attention kernels run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class _Switch:
    """torch's switch for cuDNN's attention, which is one for the whole process, held off while anybody needs it off."""

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
    """Within, attention runs on torch's flash, memory-efficient or plain kernels, and on cuDNN's only if `cudnn`.

    On an H100 or H200 torch from 2.10 on prefers cuDNN, which builds a plan, at 50 ms and more, for every (batch, length) that
    it has not seen. Batches that shrink make new shapes for ever. Which kernel runs is fixed where a layer is compiled or
    recorded, so that has to happen within, too. With `cudnn` torch's own choice stays as the user has set it.
    """
    if cudnn:
        yield
        return
    _SWITCH.hold()
    try:
        yield
    finally:
        _SWITCH.release()
