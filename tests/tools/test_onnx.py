"""tools/deployment: the export, and inference without torch, against MMDetection's and MMPretrain's own pipelines."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mmccd
from mmccd.analysis.inputs import prepare_image
from mmccd.deployment import build_network, parity_images

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

EXPORT, INFER = 'deployment/export_onnx.py', 'deployment/infer_onnx.py'
DETECTOR, CLASSIFIER = 'retinanet_ccd_r18_fpn_digits', 'ccd_r18_digits'


@pytest.fixture(scope='module')
def small(folder):
    """Config and checkpoint of a thin detector and a thin classifier, whose scores differ from place to place."""
    made = {}
    for name in (DETECTOR, CLASSIFIER):
        torch.manual_seed(0)
        cfg = mmccd.get_config(name)
        attention = dict(type='mmccd.CCD', groups=8, stages=(False, True, False, True))
        cfg.model.backbone.update(base_channels=8, attention=attention)
        if name == DETECTOR:
            cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
            cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
        else:
            cfg.model.head.in_channels = 64
        model = mmccd.init_model(cfg, device='cpu')
        for key, p in model.named_parameters():
            if key.endswith('ccd.scale'):
                torch.nn.init.normal_(p)
        image = parity_images([(96, 128)])[0]
        head, output = (model.bbox_head.retina_cls, 'cls_0') if name == DETECTOR else (model.head.fc, 'logits')
        head.weight.data.mul_(1.5 / build_network(model, 'raw').expected(image)[output].std())
        made[name] = folder / f'{name}.py', folder / f'{name}.pth'
        cfg.dump(made[name][0])
        torch.save(dict(state_dict=model.state_dict()), made[name][1])
    return made


@pytest.fixture
def export(call_tool, small, folder, capsys):
    """Export once for all tests of this file: the path of the model."""

    def run(name, *options):
        out = folder / f'{name}{"-".join(map(str, options))}.onnx'
        if not out.exists():
            assert call_tool(EXPORT, *small[name], '--out', out, *options) == (0, '')
            printed = capsys.readouterr().out
            assert 'deviations from PyTorch' in printed
            assert 'FAILED' not in printed
        return out

    return run


@pytest.fixture
def images(tmp_path):
    """Images of noise: wider and higher than the 128 pixels of the test pipeline, smaller, grey, turned by EXIF."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for name, shape in (('wide', (90, 200)), ('high', (201, 150)), ('small', (40, 61))):
        Image.fromarray(parity_images([shape])[0]).save(folder / f'{name}.png')
    Image.fromarray(parity_images([(120, 70)])[0]).convert('L').save(folder / 'grey.png')
    turned = Image.fromarray(parity_images([(100, 140)])[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / 'turned.jpg', exif=exif, quality=95)
    (folder / 'notes.txt').write_text('no image, and not taken for one')
    return folder


@pytest.fixture(scope='module')
def pytorch(small):
    """What a config's own pipeline and model find in a file."""
    models = {name: mmccd.init_model(*paths, device='cpu') for name, paths in small.items()}

    def find(name, path):
        with torch.no_grad():
            return models[name].test_step(prepare_image(models[name].cfg, str(path)))[0]

    return find


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(), ('--shape', 128, 128)])
def test_boxes_are_those_of_mmdet(call_tool, pytorch, export, images, tmp_path, shape):
    model = export(DETECTOR, *shape)
    assert (
        call_tool(
            INFER, model, images, '--out-dir', tmp_path / 'out', '--json', tmp_path / 'out.json', '--score-thr', 0.05
        )[0]
        == 0
    )
    results = json.loads((tmp_path / 'out.json').read_text())
    assert [r['image'] for r in results] == [
        str(images / n) for n in ('grey.png', 'high.png', 'small.png', 'turned.jpg', 'wide.png')
    ]
    for r in results:
        found = r['found']
        with Image.open(r['image']) as p:
            size = p.size[::-1] if 'turned' in r['image'] else p.size
        assert len(found) >= 20
        assert all(f['name'] == str(f['label']) for f in found)
        boxes = np.array([f['box'] for f in found])
        assert (boxes >= 0).all()
        assert (boxes <= [*size, *size]).all()
        drawn = Image.open(tmp_path / 'out' / f'{r["image"].rsplit("/", 1)[1].rsplit(".", 1)[0]}_onnx.png')
        assert drawn.width * size[1] == drawn.height * size[0]
        assert max(drawn.size) >= 480
        if shape:  # padded to a square, which the gates see
            continue
        # OpenCV's bilinear in integers: a grey level, and what the network makes of it.
        expected = pytorch(DETECTOR, r['image']).pred_instances
        for score, label, box in zip(*(expected[k][:20].numpy() for k in ('scores', 'labels', 'bboxes'))):
            assert any(
                f['label'] == label and abs(f['score'] - score) < 0.02 and np.abs(f['box'] - box).max() < 1
                for f in found
            ), (r['image'], score, label, box)


EPOCHS = 30
CASCADE = f"""
# A quarter of the channels, and four scenes learnt by heart.
model = dict(
    backbone=dict(
        base_channels=16, attention=dict(groups=8), init_cfg=dict(_delete_=True, type='Kaiming', layer='Conv2d')),
    neck=dict(in_channels=[16, 32, 64, 128]),
    train_cfg=dict(rpn_proposal=dict(nms_pre=300, max_per_img=100)))
scenes = dict(ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=scenes)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
train_cfg = dict(max_epochs={EPOCHS}, val_interval={EPOCHS})
default_hooks = dict(checkpoint=dict(interval={EPOCHS}))
"""


@pytest.mark.long
def test_map_of_a_two_stage_detector(call_tool, root, workplace, capsys):
    """A Cascade R-CNN that has learnt something: the boxes of infer_onnx.py have the mAP of test.py."""
    base = root / 'configs' / 'cascade_rcnn_ccd_r18_fpn_digits.py'
    (workplace / 'cascade.py').write_text(f'_base_ = {str(base)!r}\n{CASCADE}')
    assert call_tool('train.py', 'cascade.py', '--work-dir', 'trained') == (0, '')
    checkpoint = f'trained/epoch_{EPOCHS}.pth'
    tested = ('--work-dir', 'tested', '--out', 'tested/metrics.json', '--out-item', 'metrics')
    code, stderr = call_tool('test.py', 'cascade.py', checkpoint, *tested)
    assert code == 0, stderr
    expected = json.loads((workplace / 'tested' / 'metrics.json').read_text())
    assert expected['coco/bbox_mAP'] > 0.05

    folder = workplace / 'data' / 'digits' / 'det'
    assert call_tool(EXPORT, 'cascade.py', checkpoint, '--out', 'cascade.onnx', '--images', folder / 'val')[0] == 0
    assert 'FAILED' not in capsys.readouterr().out
    inferred = ('--json', 'found.json', '--out-dir', 'drawn', '--score-thr', 0)
    assert call_tool(INFER, 'cascade.onnx', folder / 'val', *inferred)[0] == 0
    truth = COCO(folder / 'annotations' / 'instances_val.json')
    ids = {image['file_name']: image['id'] for image in truth.dataset['images']}
    found = [
        dict(
            image_id=ids[Path(result['image']).name],
            category_id=truth.getCatIds()[box['label']],
            bbox=[*box['box'][:2], box['box'][2] - box['box'][0], box['box'][3] - box['box'][1]],
            score=box['score'],
        )
        for result in json.loads((workplace / 'found.json').read_text())
        for box in result['found']
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for value, key in zip(evaluation.stats, ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')):
        assert value == pytest.approx(expected[f'coco/{key}'], abs=0.0006)  # three digits are written


@pytest.mark.slow
@pytest.mark.parametrize('runtime', ['int8', 'openvino'])
def test_other_runtimes_are_rows_of_the_table(call_tool, small, images, tmp_path, capsys, runtime):
    """Rows without a limit, below those that have one; the 8-bit file is smaller, and infer_onnx.py runs it."""
    if runtime == 'openvino':
        pytest.importorskip('openvino')
    out = tmp_path / 'model.onnx'
    options = ('--out', out, '--images', images / 'wide.png', '--also', runtime)
    assert call_tool(EXPORT, *small[CLASSIFIER], *options) == (0, '')
    table = [line.split(' | ') for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    names = [row[0].removeprefix('| ') for row in table]
    assert names == ['output', 'logits', 'scores', f'logits, {runtime}', f'scores, {runtime}']
    assert [row[-1].strip(' |') for row in table[1:]] == ['1e-04', '1e-04', '', '']
    worst = max(map(float, table[-1][1:4]))
    if runtime == 'openvino':
        assert worst < 1e-4
        return
    assert 1e-4 < worst < 0.2
    less = tmp_path / 'model_int8.onnx'
    assert 0.2 < less.stat().st_size / out.stat().st_size < 0.6
    assert call_tool(INFER, less, images / 'wide.png', '--out-dir', tmp_path / 'drawn')[0] == 0
    assert (tmp_path / 'drawn' / 'wide_onnx.png').is_file()


@pytest.mark.slow
def test_a_fixed_size_is_padded_as_mmdet_pads(call_tool, pytorch, export, tmp_path):
    # 100 x 128 pixels: padded to 128 x 128 by either.
    image = tmp_path / 'image.png'
    Image.fromarray(parity_images([(100, 128)])[0]).save(image)
    assert (
        call_tool(
            INFER,
            export(DETECTOR, '--shape', 128, 128),
            image,
            '--out-dir',
            tmp_path,
            '--json',
            tmp_path / 'out.json',
            '--score-thr',
            0.05,
        )[0]
        == 0
    )
    found = json.loads((tmp_path / 'out.json').read_text())[0]['found']
    expected = pytorch(DETECTOR, image).pred_instances
    assert len(found) == len(expected)
    assert np.allclose([f['score'] for f in found], expected.scores, atol=1e-4)
    assert np.allclose([f['box'] for f in found], expected.bboxes, atol=1e-2)


@pytest.mark.slow
def test_classes_are_those_of_mmpretrain(call_tool, pytorch, export, images, tmp_path):
    for shape in (), ('--shape', 64, 64):
        assert (
            call_tool(
                INFER,
                export(CLASSIFIER, *shape),
                images,
                '--out-dir',
                tmp_path / 'out',
                '--json',
                tmp_path / 'out.json',
                '--topk',
                3,
            )[0]
            == 0
        )
        for r in json.loads((tmp_path / 'out.json').read_text()):
            expected = pytorch(CLASSIFIER, r['image']).pred_score
            assert [f['label'] for f in r['found']] == expected.topk(3).indices.tolist()
            assert np.allclose([f['score'] for f in r['found']], expected.topk(3).values, atol=0.02)


@pytest.mark.slow
def test_inference_without_torch(export, images, root, tmp_path):
    blocked = ['torch', 'torchvision', 'mmccd', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'cv2', 'onnx']
    code = (
        f'import runpy, sys; sys.modules.update(dict.fromkeys({blocked}))\n'
        f'sys.argv = ["infer_onnx.py", {str(export(DETECTOR))!r}, {str(images / "wide.png")!r}]\n'
        f'runpy.run_path({str(root / "tools" / INFER)!r}, run_name="__main__")'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'work_dirs/{DETECTOR}/onnx/wide_onnx.png: ')
    assert (tmp_path / 'work_dirs' / DETECTOR / 'onnx' / 'wide_onnx.png').is_file()


def test_control_c_in_inference(call_tool, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('argparse.ArgumentParser.parse_args', interrupt)
    assert call_tool(INFER) == (130, '\ninterrupted\n')


@pytest.mark.slow
def test_class_folders(call_tool, export, class_folders):
    model = export(CLASSIFIER, '--shape', 64, 64)
    assert call_tool(INFER, model, 'val', '--out-dir', 'out', '--json', 'out.json')[0] == 0
    assert [r['image'] for r in json.loads(Path('out.json').read_text())] == list(class_folders)
    assert sorted(str(p) for p in Path('out').rglob('*.png')) == sorted(
        f'out/{name}_onnx.png' for name in class_folders.values()
    )


@pytest.mark.parametrize('name', ['image', 'picture'])
def test_input_of_any_name(call_tool, tmp_path, name):
    """Files of version 0.1 call it 'picture'. The model here: the mean of each channel, softmaxed."""
    value = onnx.helper.make_tensor_value_info
    size = ('n', 3, 'h', 'w')
    axes = onnx.helper.make_tensor('axes', onnx.TensorProto.INT64, [2], [2, 3])
    scale = onnx.helper.make_tensor('scale', onnx.TensorProto.FLOAT, [1], [0.01])
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node('GlobalAveragePool', [name], ['mean']),
            onnx.helper.make_node('Squeeze', ['mean', 'axes'], ['flat']),
            onnx.helper.make_node('Mul', ['flat', 'scale'], ['logits']),
            onnx.helper.make_node('Softmax', ['logits'], ['scores'], axis=1),
        ],
        'tiny',
        [value(name, onnx.TensorProto.FLOAT, size)],
        [value('scores', onnx.TensorProto.FLOAT, ('n', 3))],
        [axes, scale],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)
    info = dict(version='0.1.0', config='tiny', task='classification', kind='end2end', shape=None, resize=[])
    info['classes'] = ['red', 'green', 'blue']
    onnx.helper.set_model_props(model, dict(mmccd=json.dumps(info)))
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / 'tiny.onnx')
    Image.new('RGB', (9, 7), (100, 250, 50)).save(tmp_path / 'a.png')
    options = ('--out-dir', tmp_path, '--json', tmp_path / 'found.json')
    assert call_tool(INFER, tmp_path / 'tiny.onnx', tmp_path / 'a.png', *options) == (0, '')
    (entry,) = json.loads((tmp_path / 'found.json').read_text())
    expected = np.exp([2.5, 1.0, 0.5]) / np.exp([2.5, 1.0, 0.5]).sum()
    assert [f['name'] for f in entry['found']] == ['green', 'red', 'blue']
    assert [f['score'] for f in entry['found']] == pytest.approx(expected, abs=1e-5)
    assert entry['image'] == str(tmp_path / 'a.png')


def test_resizing_is_opencvs_within_a_grey_level(load_tool):
    cv2 = pytest.importorskip('cv2')
    resize = load_tool(INFER).resize
    for shape, (width, height) in (((90, 200), (128, 58)), ((40, 61), (128, 84)), ((33, 7), (7, 33)), ((5, 5), (5, 5))):
        image = parity_images([shape])[0]
        got = resize(image, width, height)
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - cv2.resize(image, (width, height))).max() <= 1


@pytest.mark.parametrize(
    ('shape', 'name'),
    [
        ((300, 451), 'ccd_r50_8xb32_in1k'),
        ((451, 300), 'ccd_r50_8xb32_in1k'),
        ((30, 45), 'retinanet_ccd_r50_fpn_1x_coco'),
    ],
)
def test_sizes_are_those_of_the_pipelines(load_tool, tmp_path, shape, name):
    from mmccd.deployment import resize_steps

    cfg = mmccd.get_config(name)
    image = parity_images([shape])[0]
    Image.fromarray(image).save(tmp_path / 'image.png')
    info = dict(resize=resize_steps(cfg), shape=None, task='')
    ready, factor, start = load_tool(INFER).prepare(image, info)
    expected = prepare_image(cfg, str(tmp_path / 'image.png'))['inputs'][0].flip(0).permute(1, 2, 0).numpy()
    assert ready.shape == expected.shape
    assert np.abs(ready.astype(int) - expected).max() <= 1
    if name.startswith('ccd'):  # 256 / 300, and the middle of the longer edge
        assert factor == pytest.approx([384 / 451, 256 / 300] if shape[0] < shape[1] else [256 / 300, 384 / 451])
        assert sorted(start * factor) == pytest.approx([16, 80], abs=1)


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('factor', [1.0, 0.37, 1.5, (0.7, 1.3)])
def test_sizes_by_a_factor_are_those_of_mmcv(load_tool, tmp_path, factor, keep_ratio):
    from mmccd.deployment import resize_steps

    cfg = mmccd.get_config('retinanet_ccd_r50_fpn_1x_coco')
    cfg.test_dataloader.dataset.pipeline[1] = dict(
        type='Resize', scale=None, scale_factor=factor, keep_ratio=keep_ratio
    )
    image = parity_images([(31, 46)])[0]
    Image.fromarray(image).save(tmp_path / 'image.png')
    ready, _, _ = load_tool(INFER).prepare(image, dict(resize=resize_steps(cfg), shape=None, task=''))
    expected = prepare_image(cfg, str(tmp_path / 'image.png'))['inputs'][0].flip(0).permute(1, 2, 0).numpy()
    assert ready.shape == expected.shape
    assert np.abs(ready.astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_a_step_that_the_inference_cannot_follow(call_tool, small, workplace):
    (config, checkpoint), image = small[CLASSIFIER], workplace / 'image.png'
    (workplace / 'mine.py').write_text(
        f'_base_ = {str(config)!r}\ntest_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64), interpolation='nearest'),\n"
        "    dict(type='PackInputs')]))\n"
    )
    Image.new('RGB', (9, 9)).save(image)
    step = "{'scale': [64, 64], 'interpolation': 'nearest', 'type': 'Resize'}"
    assert call_tool(EXPORT, 'mine.py', checkpoint, '--out', 'mine.onnx', '--shape', 64, 64) == (
        0,
        f'warning: infer_onnx.py will refuse the file, it cannot follow {step} of the test pipeline\n',
    )
    assert call_tool(INFER, 'mine.onnx', image) == (
        2,
        f"error: model 'mine.onnx' needs a transform of the test pipeline that is not supported: {step}\n",
    )


def test_parity_is_part_of_the_export(call_tool, small, tmp_path, monkeypatch, capsys):
    """An exporter that makes another model: exit code 1, and the file is not where it should be."""
    from mmccd.deployment import networks

    monkeypatch.setattr(networks.Preparation, 'forward', lambda self, image: (image - 100) / self.std)
    out = tmp_path / 'model.onnx'
    code, stderr = call_tool(EXPORT, *small[CLASSIFIER], '--out', out, '--shape', 33, 41)
    assert (code, stderr) == (1, 'error: the exported model does not agree with PyTorch, see the table\n')
    assert [p.name for p in tmp_path.iterdir()] == ['model.onnx.failed']
    assert '| logits | ' in (printed := capsys.readouterr().out)
    assert 'FAILED' in printed


def test_bad_input_of_the_export(call_tool, small, workplace, root, monkeypatch):
    (workplace / 'text.png').write_text('no image')
    detector, classifier = small[DETECTOR], small[CLASSIFIER]
    cascade = root / 'configs' / 'cascade_rcnn_ccd_r18_fpn_digits.py'
    torch.save(dict(state_dict=mmccd.init_model(str(cascade), device='cpu').state_dict()), workplace / 'cascade.pth')
    for args, message in (
        ((*detector, '--shape', 0, 64), '--shape must be at least 1 1, got 0 64\n'),
        ((*detector, '--shape', 64, -1), '--shape must be at least 1 1, got 64 -1\n'),
        ((detector[0], classifier[1]), 'does not fit the config, nothing was done:\n'),
        ((detector[0], 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (('none.py', detector[1]), "config 'none.py' does not exist"),
        ((*detector, '--out', workplace), f'--out {workplace} is a folder: name a file\n'),
        (
            (*detector, '--out', 'text.png/model.onnx'),
            '--out text.png/model.onnx: text.png is no folder\n',
        ),
        ((*detector, '--images', 'text.png'), "image 'text.png' cannot be used: it is no image\n"),
        ((*detector, '--cfg-options', 'model.test_cfg.nms.type=soft_nms'), 'end2end cannot export test_cfg.nms='),
        (
            (cascade, 'cascade.pth', '--cfg-options', 'model.test_cfg.rcnn.nms.type=soft_nms'),
            'end2end cannot export test_cfg.rcnn.nms=',
        ),
    ):
        code, stderr = call_tool(EXPORT, *args)
        assert (code, stderr[:7]) == (2, 'error: '), args
        assert message in stderr, args
    monkeypatch.setitem(sys.modules, 'openvino', None)
    code, stderr = call_tool(EXPORT, *detector, '--also', 'openvino')
    assert (code, stderr) == (2, 'error: the export needs openvino: pip install openvino\n')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert call_tool(EXPORT, *detector) == (2, 'error: the export needs onnxruntime: pip install onnxruntime\n')
    assert not list(workplace.rglob('*.onnx*'))


def test_bad_input_of_the_inference(call_tool, small, export, workplace, monkeypatch):
    model = export(CLASSIFIER, '--shape', 64, 64)
    raw = export(CLASSIFIER, '--shape', 64, 64, '--kind', 'raw')
    image = next((workplace / 'data' / 'digits' / 'det' / 'val').iterdir())
    (workplace / 'text.png').write_text('no image')
    (workplace / 'empty').mkdir()
    graph = onnx.load(model)
    del graph.metadata_props[:]
    onnx.save(graph, 'foreign.onnx')
    for args, message in (
        (('none.onnx', image), "model 'none.onnx' does not exist\n"),
        (('text.png', image), "model 'text.png' cannot be read: "),
        (('foreign.onnx', image), "model 'foreign.onnx' was not made by export_onnx.py: it does not say how"),
        ((raw, image), 'was exported with --kind raw, and gives no scores: export it with --kind end2end\n'),
        ((model, 'text.png'), "image 'text.png' cannot be used: it is no image\n"),
        ((model, 'none.png'), "image 'none.png' cannot be used: there is no such file\n"),
        ((model, 'empty'), "folder 'empty' has no image in it (a file named "),
        ((model, image, '--topk', 0), '--topk must be at least 1, got 0\n'),
        ((model, image, '--score-thr', 2), '--score-thr must be from 0 to 1, got 2\n'),
        ((model, image, '--out-dir', 'text.png'), 'text.png cannot be written: '),
    ):
        code, stderr = call_tool(INFER, *args)
        assert (code, stderr[:7]) == (2, 'error: '), args
        assert message in stderr, args
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert call_tool(INFER, model, image) == (2, 'error: infer_onnx.py needs onnxruntime: pip install onnxruntime\n')
    assert not list(workplace.rglob('*_onnx.png'))
