"""CCD on CPUs, by loops that numba compiles.

``launch`` has what a backend is asked for and chooses threads, ``plan`` what the loops are given: a record of arguments
and tables. The loops of the two directions are in ``kernels_forward`` and ``kernels_backward``, what both use is
in ``kernels_shared`` (slabs, pooling) and ``kernels_gate`` (statistics, the gate). ``vectors`` has what numba lacks,
and ``callbacks`` compiles. numba is imported from ``callbacks`` on, at the first call.
"""
