"""Convert a checkpoint of the original CCD code, or of timm, into one for a config here.

It converts the original ImageNet models (plain, CCD, SE, GE, CBAM, GC, SK; depths 18 to 152), RetinaNet and Cascade
R-CNN of MMDetection 0.6 with these backbones, the authors' ECA-Nets, and timm's SE-ResNet-50, -101 and -152. Other
files are refused with the reason; mmccd/checkpoints/convert.py has the details. Every tensor is converted, or nothing
is written. No code from the file is run.
"""

import argparse
import os.path as osp

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet

# isort: split
from mmccd.checkpoints.convert import TASKS
from mmccd.cli.arguments import run_tool
from mmccd.cli.outputs import check_folder
from mmccd.cli.parser import tool_parser
from mmccd.models.conversion import convert_file

EXAMPLES = """examples:
  python tools/model_converters/original_to_mmccd.py ccd_resnet50.pth.tar checkpoints/ccd_r50_in1k.pth
  python tools/model_converters/original_to_mmccd.py epoch_24.pth checkpoints/retinanet_ccd_r50.pth --task det
  python tools/model_converters/original_to_mmccd.py ge_resnet50.pth.tar checkpoints/ge_r50_in1k.pth --arch ge_r50
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument('in_file', metavar='IN', help='checkpoint to convert')
    parser.add_argument('out_file', metavar='OUT', help='checkpoint to write; its folder is created')
    parser.add_argument(
        '--arch',
        help='the expected architecture, [<detector>_][<attention>_]r<depth>, e.g. ccd_r50 or cascade_rcnn_gc_r50; any '
        'other is refused. Default: recognised by the tensors. Needed for GE alone: it has no parameters, so its files '
        'have the same tensors as those of plain ResNet',
    )
    parser.add_argument('--task', choices=TASKS, help='the expected task: classifier or detector; the other is refused')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_folder(osp.dirname(args.out_file) or '.', 'OUT')
    print(convert_file(args.in_file, args.out_file, args.arch, args.task))


if __name__ == '__main__':
    run_tool(main)
