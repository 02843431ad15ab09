"""Keeping freed memory in the process.

A training step on the CPU takes and gives back the same large tensors every time. glibc maps each of them anew, and the
kernel zeroes every page of it on first touch; on the machine of `benchmarks/README.md` that is a third of the time of a
KD layer. Told to keep what was freed, it hands out the same pages again.
"""

import ctypes
import platform

import torch

# <malloc.h>: parameters of mallopt.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory(device: torch.device) -> bool:
    """Let the allocator reuse the memory of large tensors on the CPU, from now to the end of the process.

    The process then holds the most memory it ever needed. Nothing is done for a GPU, whose memory PyTorch keeps itself,
    or where the C library is not glibc.

    Returns:
        Whether it was done.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
