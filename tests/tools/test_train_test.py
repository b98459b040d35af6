"""From images to metrics, as a user types it: the tools as programs, called from a folder that is not theirs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

CLASSIFIER, DETECTOR, COCO_DETECTOR = 'ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits', 'retinanet_ccd_r50_fpn_1x_coco'
# 80 digits and 8 scenes, in batches that divide them; no worker processes for so few.
OPTIONS = [
    f'{part}_dataloader.{key}'
    for part in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
SMALL_CLASSIFIER = [*OPTIONS, 'train_dataloader.batch_size=16', 'default_hooks.logger.interval=1']
SMALL_DETECTOR = [
    *OPTIONS,
    'train_dataloader.batch_size=2',
    'val_dataloader.batch_size=2',
    'test_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    'model.test_cfg.score_thr=0.',
]  # so that there are boxes after an epoch


def runs(work_dir: Path) -> list[Path]:
    """The folders of the runs, oldest first."""
    return sorted(p for p in work_dir.iterdir() if (p / 'vis_data').is_dir())


def scalars(run: Path) -> list[dict]:
    """What a run logged: losses a step, metrics a validation."""
    return [json.loads(line) for line in (run / 'vis_data' / 'scalars.json').read_text().splitlines()]


def log(run: Path) -> str:
    return (run / f'{run.name}.log').read_text()


def losses(run: Path) -> list[tuple[int, int]]:
    """(epoch, step) of every training step logged, whose losses have to be finite."""
    steps = [row for row in scalars(run) if 'loss' in row]
    assert all(0 < row['loss'] < 100 for row in steps)
    return [(row['epoch'], row['iter']) for row in steps]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def place(folder, digits) -> Path:
    (folder / 'data').mkdir()
    (folder / 'data' / 'digits').symlink_to(digits)
    return folder


@pytest.fixture(scope='module')
def classifier(run_tool, root, place) -> Path:
    """Work folder of a classifier trained for one epoch."""
    run_tool(
        'train.py',
        root / f'configs/{CLASSIFIER}.py',
        '--cfg-options',
        *SMALL_CLASSIFIER,
        'train_cfg.max_epochs=1',
        cwd=place,
    )
    return place / 'work_dirs' / CLASSIFIER


@pytest.fixture(scope='module')
def handed_over(run_tool, classifier, place) -> Path:
    """Its backbone where the detector's config looks for it."""
    run_tool(
        'model_converters/publish_model.py', classifier / 'epoch_1.pth', f'checkpoints/{CLASSIFIER}.pth', cwd=place
    )
    return place / 'checkpoints' / f'{CLASSIFIER}.pth'


@pytest.fixture(scope='module')
def detector(run_tool, root, place, handed_over) -> Path:
    """Work folder of a detector trained for one epoch, from the classifier's backbone."""
    run_tool(
        'train.py',
        root / f'configs/{DETECTOR}.py',
        '--cfg-options',
        *SMALL_DETECTOR,
        'train_cfg.max_epochs=1',
        cwd=place,
    )
    return place / 'work_dirs' / DETECTOR


@pytest.mark.slow
@pytest.mark.smoke
def test_classifier(run_tool, root, place, classifier):
    """One epoch of 5 steps, a validation, then the test of its checkpoint: the same accuracy of 20 digits."""
    run = runs(classifier)[0]
    assert losses(run) == [(1, step) for step in range(1, 6)]
    [validated] = [row['accuracy/top1'] for row in scalars(run) if 'accuracy/top1' in row]
    run_tool(
        'test.py',
        root / f'configs/{CLASSIFIER}.py',
        classifier / 'epoch_1.pth',
        '--work-dir',
        'tested',
        '--out',
        'tested/accuracy.json',
        '--out-item',
        'metrics',
        '--show-dir',
        'shown',
        '--cfg-options',
        *OPTIONS,
        cwd=place,
    )
    metrics = read(place / 'tested' / 'accuracy.json')
    assert metrics['accuracy/top1'] == pytest.approx(validated, abs=1e-4)
    assert metrics['accuracy/top1'] / 5 == pytest.approx(round(metrics['accuracy/top1'] / 5), abs=1e-4)  # of 20
    shown = list((place / 'tested').rglob('shown/*.png'))
    assert len(shown) == 20
    assert Image.open(shown[0]).convert('L').getextrema()[0] < Image.open(shown[0]).convert('L').getextrema()[1]


@pytest.mark.long
def test_classifier_predictions_with_flips(run_tool, root, place, classifier):
    run_tool(
        'test.py',
        root / f'configs/{CLASSIFIER}.py',
        classifier / 'epoch_1.pth',
        '--work-dir',
        'flipped',
        '--tta',
        '--out',
        'flipped/predictions.pkl',
        '--cfg-options',
        *OPTIONS,
        cwd=place,
    )
    predictions = pickle.loads((place / 'flipped' / 'predictions.pkl').read_bytes())
    assert sorted(int(p['gt_label']) for p in predictions) == sorted([*range(10), *range(10)])
    scores = torch.stack([p['pred_score'] for p in predictions])
    torch.testing.assert_close(scores.sum(1), torch.ones(20))
    assert 'TestTimeAug' in next((place / 'flipped').rglob('config.py')).read_text()


@pytest.mark.long
def test_classifier_resumes(run_tool, root, place, classifier, handed_over):
    """A second epoch after the first, which is not done again; optimizer and schedule continue."""
    before = (classifier / 'epoch_1.pth').stat().st_mtime_ns
    run_tool(
        'train.py',
        root / f'configs/{CLASSIFIER}.py',
        '--resume',
        '--cfg-options',
        *SMALL_CLASSIFIER,
        'train_cfg.max_epochs=2',
        cwd=place,
    )
    first, second = runs(classifier)
    assert losses(second) == [(2, step) for step in range(6, 11)]
    assert 'resumed epoch: 1, iter: 5' in log(second)
    assert (classifier / 'epoch_1.pth').stat().st_mtime_ns == before
    rates = [row['lr'] for run in (first, second) for row in scalars(run) if 'loss' in row]
    assert rates == sorted(rates)  # still in the warm-up of 30 steps
    assert len(set(rates)) == 10
    states = [torch.load(classifier / f'epoch_{n}.pth', weights_only=False)['optimizer']['state'] for n in (1, 2)]
    assert [int(state[0]['step']) for state in states] == [5, 10]


@pytest.mark.slow
@pytest.mark.smoke
def test_detector(run_tool, root, place, detector):
    """One epoch from the classifier's backbone, all of it; then metrics, and boxes drawn on every image."""
    run = runs(detector)[0]
    assert losses(run) == [(1, step) for step in range(1, 5)]
    assert f'checkpoints/{CLASSIFIER}.pth: 136 tensors loaded, 0 missing, 0 unexpected' in log(run)
    run_tool(
        'test.py',
        root / f'configs/{DETECTOR}.py',
        detector / 'epoch_1.pth',
        '--out',
        'ap.json',
        '--out-item',
        'metrics',
        '--show-dir',
        'shown',
        '--cfg-options',
        *SMALL_DETECTOR,
        cwd=place,
    )
    metrics = read(place / 'ap.json')
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75'} <= set(metrics)
    assert 0 <= metrics['coco/bbox_mAP'] <= metrics['coco/bbox_mAP_50'] <= 1
    shown = list(detector.rglob('shown/*.png'))
    assert sorted(p.name for p in shown) == [f'{n:06d}.png' for n in range(1, 5)]
    for path in shown:  # ground truth beside the prediction
        assert Image.open(path).size == (256, 128)


@pytest.mark.long
def test_detector_predictions(run_tool, root, place, detector):
    run_tool(
        'test.py',
        root / f'configs/{DETECTOR}.py',
        detector / 'epoch_1.pth',
        '--out',
        'boxes.pkl',
        '--cfg-options',
        *SMALL_DETECTOR,
        cwd=place,
    )
    predictions = pickle.loads((place / 'boxes.pkl').read_bytes())
    assert [p['img_id'] for p in predictions] == [1, 2, 3, 4]
    for p in predictions:
        found = p['pred_instances']
        assert found['bboxes'].shape == (len(found['scores']), 4)
        assert len(found['scores']) > 0
        assert found['bboxes'].min() >= 0
        assert found['bboxes'].max() <= 128
        assert set(found['labels'].tolist()) <= set(range(10))
        assert torch.equal(found['scores'], found['scores'].sort(descending=True).values)


@pytest.mark.long
def test_detector_with_flips(run_tool, root, place, detector):
    """Every image goes through the network as it is and mirrored; the metrics are there as ever."""
    run_tool(
        'test.py',
        root / f'configs/{DETECTOR}.py',
        detector / 'epoch_1.pth',
        '--tta',
        '--work-dir',
        'det_flipped',
        '--out',
        'det_flipped/ap.json',
        '--out-item',
        'metrics',
        '--cfg-options',
        *SMALL_DETECTOR,
        cwd=place,
    )
    assert 0 <= read(place / 'det_flipped' / 'ap.json')['coco/bbox_mAP'] <= 1
    assert 'DetTTAModel' in next((place / 'det_flipped').rglob('config.py')).read_text()


@pytest.mark.long
def test_detector_resumes(run_tool, root, place, detector):
    run_tool(
        'train.py',
        root / f'configs/{DETECTOR}.py',
        '--resume',
        detector / 'epoch_1.pth',
        '--cfg-options',
        *SMALL_DETECTOR,
        'train_cfg.max_epochs=2',
        cwd=place,
    )
    run = runs(detector)[-1]
    assert losses(run) == [(2, step) for step in range(5, 9)]
    assert 'resumed epoch: 1, iter: 4' in log(run)
    assert (detector / 'epoch_2.pth').is_file()


def torchvision_resnet50(path: Path) -> Path:
    """A ResNet-50 with seeded weights in torchvision's format, classifier included."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), path)
    return path


@pytest.fixture(scope='module')
def coco_options(coco, folder) -> list[str]:
    """All that has to be changed for own data and an own start."""
    loaders = [f'{part}_dataloader.dataset.data_root={coco}' for part in ('train', 'val', 'test')]
    evaluators = [f'{part}_evaluator.ann_file={coco}/annotations/instances_val2017.json' for part in ('val', 'test')]
    return [
        *OPTIONS,
        *loaders,
        *evaluators,
        'randomness.seed=0',
        'train_dataloader.dataset.pipeline.2.scale=(160,128)',
        'val_dataloader.dataset.pipeline.1.scale=(160,128)',
        'test_dataloader.dataset.pipeline.1.scale=(160,128)',
        'train_dataloader.batch_size=1',
        'default_hooks.logger.interval=1',
        'model.test_cfg.score_thr=0.',
        'model.backbone.attention.identity_init=True',
        f'model.backbone.init_cfg.checkpoint={torchvision_resnet50(folder / "resnet50.pth")}',
        'model.backbone.init_cfg.allow_missing=ccd',
    ]


@pytest.fixture(scope='module')
def two_processes(run_tool, free_port, root, folder, coco_options) -> Path:
    """Work folder of the COCO detector, trained for an epoch by two processes."""
    run_tool(
        'dist_train.sh',
        root / f'configs/{COCO_DETECTOR}.py',
        2,
        '--cfg-options',
        *coco_options,
        'train_cfg.max_epochs=1',
        cwd=folder,
        PORT=free_port(),
    )
    return folder / 'work_dirs' / COCO_DETECTOR


def average_precision(run: Path) -> float:
    [ap] = [row['coco/bbox_mAP'] for row in scalars(run) if 'coco/bbox_mAP' in row]
    return ap


@pytest.mark.long
def test_two_processes_train(two_processes):
    """4 images have boxes: 2 steps an epoch for two processes."""
    first = runs(two_processes)[0]
    assert losses(first) == [(1, 1), (1, 2)]
    assert 'resnet50.pth: 318 tensors loaded, 32 missing (ccd: 32), 2 unexpected (fc: 2)' in log(first)
    assert 0 <= average_precision(first) <= 1


@pytest.mark.long
def test_two_processes_resume(run_tool, free_port, root, folder, coco_options, two_processes):
    run_tool(
        'dist_train.sh',
        root / f'configs/{COCO_DETECTOR}.py',
        2,
        '--resume',
        '--cfg-options',
        *coco_options,
        'train_cfg.max_epochs=2',
        cwd=folder,
        PORT=free_port(),
    )
    second = runs(two_processes)[-1]
    assert losses(second) == [(2, 3), (2, 4)]
    assert 'resumed epoch: 1, iter: 2' in log(second)
    assert 0 <= average_precision(second) <= 1


@pytest.mark.long
def test_two_processes_test_as_one(run_tool, free_port, root, folder, coco_options, two_processes):
    """Predictions and metrics are the same with one process and with two, which share 3 images."""
    config, checkpoint = root / f'configs/{COCO_DETECTOR}.py', two_processes / 'epoch_1.pth'
    for tool, processes, name in (('test.py', [], 'one'), ('dist_test.sh', [2], 'two')):
        run_tool(
            tool,
            config,
            checkpoint,
            *processes,
            '--work-dir',
            name,
            '--out',
            f'{name}.pkl',
            '--cfg-options',
            *coco_options,
            cwd=folder,
            PORT=free_port(),
        )
    metrics = []
    for name in ('one', 'two'):
        [run] = runs(folder / name)
        found = read(run / f'{run.name}.json')
        metrics.append({key: value for key, value in found.items() if key.startswith('coco/')})
    assert metrics[0] == metrics[1]
    assert 0 <= metrics[0]['coco/bbox_mAP'] <= 1  # two steps find next to nothing; the predictions tell
    one, two = (pickle.loads((folder / f'{name}.pkl').read_bytes()) for name in ('one', 'two'))
    assert [p['img_id'] for p in one] == [p['img_id'] for p in two] == [1, 2, 3]
    for a, b in zip(one, two):
        for key in ('bboxes', 'scores', 'labels'):
            assert len(a['pred_instances'][key]) > 0
            assert torch.equal(a['pred_instances'][key], b['pred_instances'][key])
