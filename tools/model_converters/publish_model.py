"""Make a checkpoint small and safe to hand on: weights and plain meta data, without optimizer and histories."""

import argparse
import hashlib
import os
import os.path as osp

import torch

import mmccd  # noqa: F401
from mmccd.checkpoints.read import check_checkpoint_file, load_local_checkpoint
from mmccd.cli.arguments import run_tool
from mmccd.errors import UserError

EXAMPLES = """example:
  python tools/model_converters/publish_model.py work_dirs/ccd_r50_8xb32_in1k/epoch_100.pth checkpoints/ccd_r50_in1k.pth
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('in_file', help='checkpoint of a training')
    parser.add_argument('out_file', help='checkpoint to write; its folder is made')
    parser.add_argument('--add-hash', action='store_true', help="append -<8 digits of SHA-256>, OpenMMLab's way")
    return parser.parse_args()


def publish(in_file: str, out_file: str, add_hash: bool = False) -> str:
    """Write the published form of ``in_file``; returns the path written. Whole or not at all."""
    check_checkpoint_file(in_file, 'in_file')
    try:
        checkpoint = load_local_checkpoint(in_file)
    except ValueError as e:
        raise UserError(str(e)) from e
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise UserError(f'{in_file} has no state_dict: it is no checkpoint of a training')
    kept = {k: checkpoint[k] for k in ('meta', 'state_dict') if k in checkpoint}
    os.makedirs(osp.dirname(osp.abspath(out_file)), exist_ok=True)
    partial = f'{out_file}.partial'
    try:
        torch.save(kept, partial)
        load_local_checkpoint(partial)  # what is handed on must load without running code
        with open(partial, 'rb') as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        if add_hash:
            stem, suffix = osp.splitext(out_file)
            out_file = f'{stem}-{digest[:8]}{suffix}'
        os.replace(partial, out_file)
    except BaseException:  # a full disk, Ctrl-C
        if osp.exists(partial):
            os.remove(partial)
        raise
    print(f'{out_file}: {osp.getsize(out_file) / 2**20:.1f} MiB, SHA-256 {digest}')
    return out_file


def main() -> None:
    args = parse_args()
    publish(args.in_file, args.out_file, args.add_hash)


if __name__ == '__main__':
    run_tool(main)
