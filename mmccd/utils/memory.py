"""What the C library does with memory that PyTorch frees."""
import ctypes
import platform


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: returned to the system, every large tensor's pages are cleared and mapped anew.

    An eighth of a training step on the CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if platform.libc_ver()[0] == 'glibc' else None
    if mallopt is not None:
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: nothing by mmap; M_TRIM_THRESHOLD: never
            mallopt(parameter, value)
