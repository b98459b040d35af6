"""Execute the notebooks beside this file with this interpreter: python docs/notebooks/run.py [--write]."""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

# What docs/requirements.txt installs is imported where it is used: --help needs none of it.


def this_python() -> type:
    """A class of kernels of the running interpreter, whether or not one is installed for Jupyter; they open no port."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class ThisPython(AsyncKernelManager):
        transport = 'ipc'

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=[sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}'])

    return ThisPython


def execute(path: Path, timeout: int = 300) -> Any:
    """The notebook with new outputs.

    Args:
        path (Path): Where it is.
        timeout (int): Seconds that a cell may take. Default: 300.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_manager_class=this_python(),
        record_timing=False,
        coalesce_streams=True,
        resources=dict(metadata=dict(path=str(path.parents[2]))),
    )  # the repository's root
    client.execute()
    for cell in notebook.cells:
        for out in cell.get('outputs', ()):
            if out.output_type == 'stream':  # what OpenMMLab's packages print when they are imported
                out.text = re.sub(r'^Could not import OneDL.*\n', '', out.text, flags=re.MULTILINE)
        if 'outputs' in cell:
            cell.outputs = [out for out in cell.outputs if out.get('text') != '']
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help='store the new outputs')
    args = parser.parse_args()
    import nbformat

    for path in sorted(Path(__file__).parent.glob('*.ipynb')):
        start = time.time()
        notebook = execute(path)
        if args.write:
            nbformat.write(notebook, path)
        print(f'{path.name}: {time.time() - start:.0f} s')


if __name__ == '__main__':
    main()
