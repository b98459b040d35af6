"""torchrun, with the exit code of a training that ended on a signal after saving; tools/dist_train.sh starts it."""

import os
import signal
import sys
import tempfile

from torch.distributed import run


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # torchrun ends with code 1 whatever its processes end with: mmccd.InterruptHook writes the code here.
        marker = os.environ['MMCCD_INTERRUPTED'] = os.path.join(folder, 'exit_code')
        # torchrun hands SIGTERM on, and knows no SIGUSR1.
        signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            run.main()
        except BaseException:
            if not os.path.exists(marker):
                raise
            with open(marker) as f:
                sys.exit(int(f.read()))


if __name__ == '__main__':
    main()
