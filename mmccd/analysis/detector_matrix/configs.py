"""The configs of the matrix: at least one of every family of detectors that MMDetection ships."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from mmccd.errors import UserError, suggest

_NAMES = """
albu_example/mask-rcnn_r50_fpn_albu-1x_coco
atss/atss_r50_fpn_1x_coco
autoassign/autoassign_r50-caffe_fpn_1x_coco
boxinst/boxinst_r50_fpn_ms-90k_coco
carafe/faster-rcnn_r50_fpn-carafe_1x_coco
carafe/mask-rcnn_r50_fpn-carafe_1x_coco
cascade_rcnn/cascade-mask-rcnn_x101-32x4d_fpn_1x_coco
cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco
cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco
centernet/centernet-update_r50-caffe_fpn_ms-1x_coco
centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco
centernet/centernet_r18_8xb16-crop512-140e_coco
centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco
cityscapes/mask-rcnn_r50_fpn_1x_cityscapes
condinst/condinst_r50_fpn_ms-poly-90k_coco_instance
conditional_detr/conditional-detr_r50_8xb2-50e_coco
convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco
cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco
crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman
crowddet/crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman
dab_detr/dab-detr_r50_8xb2-50e_coco
dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco
dcn/faster-rcnn_r50_fpn_dpool_1x_coco
dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco
ddod/ddod_r50_fpn_1x_coco
ddq/ddq-detr-4scale_r50_8xb2-12e_coco
deepfashion/mask-rcnn_r50_fpn_15e_deepfashion
deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco
deformable_detr/deformable-detr_r50_16xb2-50e_coco
detectors/cascade-rcnn_r50-rfp_1x_coco
detectors/detectors_cascade-rcnn_r50_1x_coco
detr/detr_r50_8xb2-150e_coco
dino/dino-4scale_r50_8xb2-12e_coco
double_heads/dh-faster-rcnn_r50_fpn_1x_coco
dyhead/atss_r50_fpn_dyhead_1x_coco
dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco
efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco
empirical_attention/faster-rcnn_r50-attn1111_fpn_1x_coco
fast_rcnn/fast-rcnn_r50_fpn_1x_coco
faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco
faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco
faster_rcnn/faster-rcnn_r50_fpn_1x_coco
fcos/fcos_r50-caffe_fpn_gn-head_1x_coco
fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco
foveabox/fovea_r50_fpn_4xb4-1x_coco
foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco
fpg/faster-rcnn_r50_fpg_crop640-50e_coco
free_anchor/freeanchor_r50_fpn_1x_coco
fsaf/fsaf_r50_fpn_1x_coco
gcnet/mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco
gfl/gfl_r50_fpn_1x_coco
ghm/retinanet_r50_fpn_ghm-1x_coco
glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco
gn+ws/faster-rcnn_x50-32x4d_fpn_gn-ws-all_1x_coco
gn/mask-rcnn_r50_fpn_gn-all_2x_coco
grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco
groie/mask-rcnn_r50_fpn_groie_1x_coco
grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco
guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco
guided_anchoring/ga-retinanet_r50_fpn_1x_coco
hrnet/faster-rcnn_hrnetv2p-w18-1x_coco
htc/htc-without-semantic_r50_fpn_1x_coco
htc/htc_r50_fpn_1x_coco
instaboost/mask-rcnn_r50_fpn_instaboost-4x_coco
lad/lad_r50-paa-r101_fpn_2xb8_coco_1x
ld/ld_r50-gflv1-r101_fpn_1x_coco
legacy_1.x/retinanet_r50_fpn_1x_coco_v1
libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco
libra_rcnn/libra-retinanet_r50_fpn_1x_coco
lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1
mask2former/mask2former_r50_8xb2-lsj-50e_coco
mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic
mask_rcnn/mask-rcnn_r50_fpn_1x_coco
maskformer/maskformer_r50_ms-16xb1-75e_coco
mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365
ms_rcnn/ms-rcnn_r50_fpn_1x_coco
nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco
nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco
objects365/retinanet_r50_fpn_1x_objects365v1
openimages/faster-rcnn_r50_fpn_32xb2-1x_openimages
paa/paa_r50_fpn_1x_coco
pafpn/faster-rcnn_r50_pafpn_1x_coco
panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco
pascal_voc/faster-rcnn_r50_fpn_1x_voc0712
pisa/faster-rcnn_r50_fpn_pisa_1x_coco
pisa/retinanet-r50_fpn_pisa_1x_coco
point_rend/point-rend_r50-caffe_fpn_ms-1x_coco
pvt/retinanet_pvt-t_fpn_1x_coco
pvt/retinanet_pvtv2-b0_fpn_1x_coco
queryinst/queryinst_r50_fpn_1x_coco
regnet/retinanet_regnetx-3.2GF_fpn_1x_coco
reppoints/reppoints-bbox_r50_fpn-gn_head-gn-grid_1x_coco
reppoints/reppoints-moment_r50_fpn_1x_coco
res2net/faster-rcnn_res2net-101_fpn_2x_coco
resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco
resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco
retinanet/retinanet_r18_fpn_1x_coco
retinanet/retinanet_r50_fpn_1x_coco
rpn/rpn_r50_fpn_1x_coco
rtmdet/rtmdet-ins_tiny_8xb32-300e_coco
rtmdet/rtmdet_tiny_8xb32-300e_coco
sabl/sabl-cascade-rcnn_r50_fpn_1x_coco
sabl/sabl-retinanet_r50_fpn_1x_coco
scnet/scnet_r50_fpn_1x_coco
scratch/faster-rcnn_r50-scratch_fpn_gn-all_6x_coco
seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1
selfsup_pretrain/mask-rcnn_r50-mocov2-pre_fpn_1x_coco
simple_copy_paste/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-scp-90k_coco
soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco
solo/decoupled-solo_r50_fpn_1x_coco
solo/solo_r50_fpn_1x_coco
solov2/solov2-light_r50-dcn_fpn_ms-3x_coco
solov2/solov2_r50_fpn_1x_coco
sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco
ssd/ssd300_coco
ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco
strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-50e_coco
swin/retinanet_swin-t-p4-w7_fpn_1x_coco
timm_example/retinanet_timm-tv-resnet50_fpn_1x_coco
tood/tood_r50_fpn_1x_coco
tridentnet/tridentnet_r50-caffe_1x_coco
v3det/faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x
vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco
vfnet/vfnet_r50_fpn_1x_coco
wider_face/retinanet_r50_fpn_1x_widerface
yolact/yolact_r50_1xb8-55e_coco
yolo/yolov3_d53_8xb8-320-273e_coco
yolof/yolof_r50-c5_8xb8-1x_coco
yolox/yolox_tiny_8xb8-300e_coco
"""
CONFIGS = tuple(_NAMES.split())

# Of MMSegmentation, which is tried where it is installed: they are in no count of detectors.
SEGMENTORS = (
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024',
)

# Folders of MMDetection's configs that have no detector of images, and why.
LEFT_OUT = {
    '_base_': 'parts of configs',
    'bytetrack': 'tracking in videos',
    'clrnet': 'lanes',
    'common': 'parts of configs',
    'deepsort': 'tracking in videos',
    'dsdl': 'datasets',
    'mask2former_vis': 'video instance segmentation',
    'masktrack_rcnn': 'video instance segmentation',
    'misc': 'wrappers of Detectron2, which has its own backbones',
    'ocsort': 'tracking in videos',
    'qdtrack': 'tracking in videos',
    'reid': 'features of persons, for tracking',
    'sort': 'tracking in videos',
    'strongsort': 'tracking in videos',
}

# Side of the images, in pixels, where that of all others is too small.
SIDE = 128
SIDES = {
    'ssd/ssd300_coco': 300,
    # 900 queries are chosen among as many positions.
    'dino/dino-4scale_r50_8xb2-12e_coco': 256,
    # An hourglass has a map of one pixel there, which has no deviation and so no gradient of CCD's scale.
    'centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco': 256,
    'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco': 256,
}

# Where the attention goes in backbones without residual blocks of features (N, C, H, W).
PLACES = {
    'SSDVGG': 'features.?',
    'SwinTransformer': 'patch_embed.projection',
    'PyramidVisionTransformer': 'layers.?.0.projection',
    'PyramidVisionTransformerV2': 'layers.?.0.projection',
}


def matching(patterns: Sequence[str]) -> tuple[str, ...]:
    """The configs whose names match one of some shell patterns; all detectors if there are none.

    Raises:
        UserError: If a pattern matches none; the message has the nearest names.

    Example:
        >>> matching(['dcn*/*pool*'])
        ('dcn/faster-rcnn_r50_fpn_dpool_1x_coco', 'dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco')
    """
    known, chosen = (*CONFIGS, *SEGMENTORS), set[str]()
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern.removesuffix('.py'))]
        if not found:
            raise UserError(f'no config of the matrix matches {pattern!r}{suggest(pattern, known, n=3)}')
        chosen.update(found)
    return tuple(name for name in known if name in chosen) if patterns else CONFIGS
