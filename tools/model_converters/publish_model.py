"""Make a checkpoint small and safe to publish: weights and plain meta data, without optimizer and histories."""

import argparse
import hashlib
import os.path as osp

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.checkpoints.files import write_with_checksum
from mmccd.checkpoints.read import check_checkpoint_file, read_checkpoint
from mmccd.checkpoints.write import checkpoint_bytes
from mmccd.cli.arguments import run_tool
from mmccd.cli.outputs import check_file, make_folder_of
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError

EXAMPLES = """example:
  python tools/model_converters/publish_model.py work_dirs/ccd_r50_8xb32_in1k/epoch_100.pth checkpoints/ccd_r50_in1k.pth
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('in_file', help='checkpoint of a training')
    parser.add_argument('out_file', help='checkpoint to write; its folder is created')
    parser.add_argument('--add-hash', action='store_true', help="append -<8 digits of SHA-256>, OpenMMLab's way")
    return parser.parse_args()


def publish(in_file: str, out_file: str, add_hash: bool = False) -> str:
    """Write the published form of ``in_file``; returns the path written. Whole or not at all."""
    check_checkpoint_file(in_file, 'in_file')
    check_file(out_file, 'out_file')
    try:
        checkpoint = read_checkpoint(in_file, mmap=True)
    except ValueError as e:
        raise UserError(str(e)) from e
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise UserError(f'{in_file} has no state_dict: it is no checkpoint of a training')
    content = checkpoint_bytes({k: checkpoint[k] for k in ('meta', 'state_dict') if k in checkpoint})
    if add_hash:
        stem, suffix = osp.splitext(out_file)
        out_file = f'{stem}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}'
    make_folder_of(out_file)
    digest = write_with_checksum(out_file, content)
    print(f'{out_file}: {len(content) / 2**20:.1f} MiB, SHA-256 {digest}')
    return out_file


def main() -> None:
    args = parse_args()
    publish(args.in_file, args.out_file, args.add_hash)


if __name__ == '__main__':
    run_tool(main)
