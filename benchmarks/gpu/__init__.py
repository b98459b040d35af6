"""The GPU benchmark, one command: ``python benchmarks/gpu/run.py``. Its steps are modules with ``run(task)``."""
