"""Torture a training: kill it, damage its checkpoints, fill its disk, resume it, and see what is lost.

    python tests/torture/torture.py --faults 100 --seed 0

The digits detector is trained at toy size, with workers, an EMA model and validation, by tools/train.py in real
processes. They are forked from one that has imported everything, so that a start takes a second. After each fault the
training is resumed with ``--resume``. Each finished training has to have the parameters, the optimizer's states, the
images of every iteration and the mAP of every epoch of one that nobody touched, to the last bit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

os.environ['CUDA_VISIBLE_DEVICES'] = ''
os.environ['OMP_NUM_THREADS'] = '1'

# All that a training imports, here and once. mmccd comes before anything of mmdet.
for name in (
    'mmccd',
    'mmccd.checkpoints.resume',
    'mmccd.engine',
    'mmdet.models',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmdet.visualization',
):
    importlib.import_module(name)

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, SCENES, BATCH = 5, 20, 2
CONFIG = f"""
_base_ = ['{ROOT}/configs/retinanet_ccd_r18_fpn_digits.py']
# A sixteenth of the parameters, so that a checkpoint has a few megabytes.
model = dict(
    backbone=dict(
        base_channels=16, attention=dict(groups=8), init_cfg=dict(_delete_=True, type='Kaiming', layer='Conv2d')),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0., max_per_img=100))
optim_wrapper = dict(optimizer=dict(lr=5e-3))
train_dataloader = dict(batch_size={BATCH})
train_cfg = dict(max_epochs={EPOCHS})
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'), logger=dict(interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.3)]
"""
FAULTS = {
    'SIGKILL at a random moment': 45,
    'SIGKILL while a checkpoint is written': 25,
    'SIGTERM': 10,
    'SIGUSR1': 5,
    'disk full': 15,
}
DAMAGES = ('cut short', 'cut short, no checksum', 'byte flipped', 'checksum cut short')


@dataclass
class Tally:
    """What happened."""

    faults: Counter = field(default_factory=Counter)
    damages: Counter = field(default_factory=Counter)
    starts: int = 0
    resumes: int = 0
    trainings: int = 0
    iterations_again: int = 0
    epochs_lost: int = 0
    problems: list[str] = field(default_factory=list)


# In the process that trains


def _note(ledger: Path, **entry: object) -> None:
    """Append a line to the ledger, in one write and for good."""
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (json.dumps(entry) + '\n').encode())
    os.close(fd)


def _instrument(ledger: Path) -> None:
    """Let the training tell what it does."""
    from mmengine.hooks import RuntimeInfoHook

    from mmccd.engine import CheckpointHook

    def after(owner: type, name: str, note: object) -> None:
        original = getattr(owner, name)

        def method(self, runner, *args, **kwargs):
            result = original(self, runner, *args, **kwargs)
            note(self, runner, *args, **kwargs)
            return result

        setattr(owner, name, method)

    after(
        CheckpointHook,
        '_save',
        lambda self, runner, filename, meta: _note(
            ledger, what='saved', name=filename, epoch=meta['epoch'], iter=meta['iter']
        ),
    )
    after(
        CheckpointHook,
        'before_train',
        lambda self, runner: _note(ledger, what='started', epoch=runner.epoch, iter=runner.iter),
    )
    after(
        RuntimeInfoHook,
        'before_train_iter',
        lambda self, runner, batch_idx, data_batch: _note(
            ledger, what='batch', iter=runner.iter, images=[s.img_id for s in data_batch['data_samples']]
        ),
    )
    after(
        RuntimeInfoHook,
        'after_val_epoch',
        lambda self, runner, metrics: _note(ledger, what='validated', epoch=runner.epoch, mAP=metrics['coco/bbox_mAP']),
    )


def start(place: Path, largest_file: int | None) -> int:
    """Fork a process that trains in ``place/work``; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(place / 'output.txt', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(place)
        _instrument(place / 'ledger.jsonl')
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        sys.argv = ['train.py', 'toy.py', '--work-dir', 'work', '--resume']
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# In the process that tortures


class Torture:
    """Trainings in a folder, and what is done to them.

    Args:
        folder (Path): Where everything is written; needs some 100 MB.
        seed (int): Of the faults and their moments. Where exactly they hit depends on the machine as well.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.tally = Tally()
        self.data = folder / 'digits'
        spec = importlib.util.spec_from_file_location('digits', ROOT / 'tools/dataset_converters/make_digits.py')
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        images, labels = tool.load_digits()
        tool.load_digits = lambda: (images[::50], labels[::50])
        if tool.main(['--out', str(self.data), '--train-scenes', str(SCENES), '--val-scenes', '4']) != 0:
            raise RuntimeError('no data')
        # Twice: the first run may have to compile the operator.
        for name in ('first', 'reference'):
            self.reference = self.new(name)
            began = time.monotonic()
            if self.wait(start(self.reference, None)) != 0:
                raise RuntimeError((self.reference / 'output.txt').read_text()[-3000:])
            self.duration = time.monotonic() - began
        self.size = max(p.stat().st_size for p in (self.reference / 'work').glob('epoch_*.pth'))

    def new(self, name: str) -> Path:
        place = self.folder / name
        (place / 'data').mkdir(parents=True)
        (place / 'data' / 'digits').symlink_to(self.data)
        (place / 'toy.py').write_text(CONFIG)
        return place

    @staticmethod
    def ledger(place: Path) -> list[dict]:
        path = place / 'ledger.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @staticmethod
    def wait(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def run(self, faults: int) -> Tally:
        """Begin trainings and trouble them until so many faults have been done; the last one is finished in peace."""
        while sum(self.tally.faults.values()) < faults:
            place = self.new(f'training_{self.tally.trainings}')
            code, lost = None, set()
            while code != 0:
                left = faults - sum(self.tally.faults.values())
                code = self.round(place, self.rng.choices([*FAULTS], [*FAULTS.values()])[0] if left > 0 else None, lost)
            self.tally.trainings += 1
            self.compare(place)
            shutil.rmtree(place)
        return self.tally

    def round(self, place: Path, fault: str | None, lost: set[str]) -> int:
        """One start, a fault, perhaps damage to the newest checkpoint; returns the exit code."""
        before = self.ledger(place)
        full = int(self.rng.uniform(0.05, 0.95) * self.size) if fault == 'disk full' else None
        pid = start(place, full)
        self.tally.starts += 1
        done = max((e['iter'] for e in before if e['what'] == 'saved'), default=0) / (EPOCHS * SCENES / BATCH)
        # One in five at any moment, the others while it trains.
        anywhere = self.rng.random() < 0.2
        delay = self.rng.uniform(0, (1 if anywhere else 0.8) * (1 - done) + 0.05) * self.duration
        if fault == 'SIGKILL while a checkpoint is written':
            self.kill_writing(place, pid, self.rng.randrange(3))
        elif fault in ('SIGKILL at a random moment', 'SIGTERM', 'SIGUSR1'):
            signum = getattr(signal, fault.split()[0])
            self.after(pid, delay, signum, place, None if anywhere else len(before))
        code = self.wait(pid)
        if fault is not None and code != 0:
            self.tally.faults[fault] += 1
        allowed = {None: (0,), 'disk full': (0, 1), 'SIGTERM': (0, 85, -15), 'SIGUSR1': (0, 85, -10)}
        if code not in allowed.get(fault, (0, -9)):
            self.problem(place, f'exit code {code} after {fault}')
            return 0
        self.check_start(place, before, lost)
        entries = self.ledger(place)
        if code == 85 and not any(e['what'] == 'saved' for e in entries[-2:]):
            self.problem(place, f'{fault}: nothing saved')
        if code != 0 and self.rng.random() < 0.3:
            self.damage(place, lost)
        return code

    def after(self, pid: int, delay: float, signum: int, place: Path, lines: int | None) -> None:
        """Send a signal after a while, from now or once the ledger has more lines, unless the process has ended."""
        end = None if lines is not None else time.monotonic() + delay
        while end is None or time.monotonic() < end:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            if end is None and len(self.ledger(place)) > lines:
                end = time.monotonic() + delay
            time.sleep(0.005)
        os.kill(pid, signum)

    @staticmethod
    def kill_writing(place: Path, pid: int, files: int) -> None:
        """Kill once a file is half written, some ``files`` files later."""
        last = None
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            half = next((place / 'work').glob('*.pth.partial'), None) if (place / 'work').exists() else None
            if half is not None and last is None:
                if files == 0:
                    os.kill(pid, signal.SIGKILL)
                    return
                files -= 1
            last = half
            time.sleep(0.0005)

    def check_start(self, place: Path, before: list[dict], lost: set[str]) -> None:
        """Training has to have started where the best of what was saved and left undamaged says."""
        started = next((e for e in self.ledger(place)[len(before) :] if e['what'] == 'started'), None)
        if started is None:
            return  # killed before
        newest: dict[str, dict] = {}  # of each name, the last content
        for entry in (e for e in before if e['what'] == 'saved'):
            newest[entry['name']] = entry
            if entry['name'] != 'interrupted.pth':
                newest.pop('interrupted.pth', None)  # it goes with the next regular checkpoint
        due = max((e for n, e in newest.items() if n not in lost), key=lambda e: e['iter'], default=None)
        self.tally.resumes += bool(before)
        if due is not None and started['iter'] < due['iter']:
            self.tally.epochs_lost += due['epoch'] - started['epoch']
            self.problem(place, f'started at iteration {started["iter"]}, but {due["name"]} has {due["iter"]}')
        done = max((e['iter'] + 1 for e in before if e['what'] == 'batch'), default=0)
        self.tally.iterations_again += max(0, done - started['iter'])
        lost -= {e['name'] for e in self.ledger(place)[len(before) :] if e['what'] == 'saved'}  # written again

    def damage(self, place: Path, lost: set[str]) -> None:
        """Damage the newest checkpoint, if there is another."""
        entries = [e for e in self.ledger(place) if e['what'] == 'saved']
        there = {p.name for p in (place / 'work').glob('*.pth')} - lost
        newest = {e['name']: e['iter'] for e in entries if e['name'] in there}
        if len(newest) < 2:
            return
        path = place / 'work' / max(newest, key=newest.get)
        checksum = path.with_name(f'.{path.name}.sha256')
        kind = self.rng.choice(DAMAGES)
        content = bytearray(path.read_bytes())
        if kind.startswith('cut short'):
            path.write_bytes(content[: self.rng.randrange(len(content))])
            if kind.endswith('no checksum'):
                checksum.unlink(missing_ok=True)
        elif kind == 'byte flipped':
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(content)
        elif checksum.exists():
            checksum.write_text(checksum.read_text()[: self.rng.randrange(60)])
        if kind != 'checksum cut short':
            lost.add(path.name)
        elif checksum.exists() and checksum.read_text():
            lost.add(path.name)  # half a checksum fits no file; an empty one counts as none
        self.tally.damages[kind] += 1

    def compare(self, place: Path) -> None:
        """The finished training has to be the one that nobody touched."""
        name = f'work/epoch_{EPOCHS}.pth'
        ours, theirs = (torch.load(p / name, weights_only=False) for p in (place, self.reference))
        for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
            if not equal(ours[key], theirs[key]):
                self.problem(place, f'{key} differs from the untouched training')
        for what, index in (('batch', 'iter'), ('validated', 'epoch')):
            ours, theirs = ({e[index]: e for e in self.ledger(p) if e['what'] == what} for p in (place, self.reference))
            if ours != theirs:
                self.problem(place, f'{what}: {[k for k in theirs if ours.get(k) != theirs[k]]} differ')
        names = {p.name for p in (place / 'work').glob('*.pth')} - {p.name for p in (place / 'work').glob('best_*')}
        if not {f'epoch_{n}.pth' for n in range(EPOCHS - 2, EPOCHS + 1)} <= names or list(
            (place / 'work').glob('*.partial')
        ):
            self.problem(place, f'left in the folder: {sorted(names)}')

    def problem(self, place: Path, text: str) -> None:
        self.tally.problems.append(f'{place.name}: {text}')
        shutil.copytree(place, self.folder / f'problem_{len(self.tally.problems)}', symlinks=True)


def equal(a: object, b: object) -> bool:
    """Whether two nests of tensors and plain data are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def table(torture: Torture) -> str:
    """The results in Markdown."""
    t = torture.tally
    maps = [e['mAP'] for e in torture.ledger(torture.reference) if e['what'] == 'validated']
    killed = sum(n for fault, n in t.faults.items() if fault.startswith('SIGKILL'))
    rows = [
        ('faults', sum(t.faults.values())),
        *((f'- {fault}', t.faults[fault]) for fault in FAULTS),
        ('of them SIGKILL', killed),
        ('checkpoints damaged between two starts', sum(t.damages.values())),
        *((f'- {kind}', t.damages[kind]) for kind in DAMAGES),
        ('starts', t.starts),
        ('of them resumed', t.resumes),
        ('trainings brought to their end', t.trainings),
        ('saved epochs lost', t.epochs_lost),
        ('iterations done again, since they were not saved', t.iterations_again),
        (
            'trainings that differ from the untouched one (parameters, EMA, optimizer, images, mAP; bit for bit)',
            len({p.split(':')[0] for p in t.problems if 'differ' in p}),
        ),
        ('mAP of the untouched training by epoch, and of all the others', ', '.join(f'{m:.4f}' for m in maps)),
        ('problems', len(t.problems)),
    ]
    return '| | |\n|---|---:|\n' + '\n'.join(f'| {name} | {value} |' for name, value in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--faults', type=int, default=100, help='how many (default: 100, some ten minutes)')
    parser.add_argument('--seed', type=int, default=0, help='of the faults and their moments')
    parser.add_argument('--folder', type=Path, help='an empty folder, which is kept; default: a temporary one')
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix='torture'))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        torture = Torture(folder, args.seed)
        torture.run(args.faults)
        print(table(torture))
        print(f'\n{time.monotonic() - began:.0f} s, seed {args.seed}')
        for problem in torture.tally.problems:
            print(f'PROBLEM {problem}')
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    return 1 if torture.tally.problems else 0


if __name__ == '__main__':
    sys.exit(main())
