"""torchrun, with the exit codes of its processes: 85 if a training saved after a signal, 130 after Ctrl-C.

tools/dist_train.sh and tools/dist_test.sh call it.
"""

import os
import signal
import sys
import tempfile

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # torchrun ends with code 1 for any code of its processes: mmccd.InterruptHook writes the real one here.
        marker = os.environ['MMCCD_INTERRUPTED'] = os.path.join(folder, 'exit_code')
        # torchrun passes SIGTERM on to its processes, but not SIGUSR1.
        if hasattr(signal, 'SIGUSR1'):  # not on Windows
            signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            run.main()
        except BaseException as e:
            if os.path.exists(marker):
                with open(marker) as f:
                    sys.exit(int(f.read()))
            if isinstance(e, SignalException) and e.sigval == signal.SIGINT:
                sys.exit(128 + signal.SIGINT)  # the processes got it too, and have printed a line
            raise


if __name__ == '__main__':
    main()
