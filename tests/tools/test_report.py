"""tools/analysis_tools/report.py: predictions, attention maps and speed, bad input, and the page in a browser."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import mmccd

TOOL = 'analysis_tools/report.py'
SCRATCH = ('--device', 'cpu', '--no-speed', '--gates', '0', '--images', '0')


@pytest.fixture
def trained(made_up, workplace):
    """Work folders of the digits' classifier and detector, with the weights of chance."""
    folders = {}
    for name in ('ccd_r18_digits', 'retinanet_ccd_r18_fpn_digits'):
        cfg = mmccd.get_config(name)
        if name.startswith('retinanet'):
            cfg.model.test_cfg.update(score_thr=0.0, max_per_img=20)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))
        folders[name] = workplace / 'work_dirs' / name
        made_up.write_lines(folders[name] / '20260101_000000', made_up.training(range(10, 31, 10), 30))
        made_up.write_config(folders[name] / f'{name}.py', cfg)
        torch.save(dict(state_dict=model.state_dict()), folders[name] / 'epoch_1.pth')
        (folders[name] / 'last_checkpoint').write_text('epoch_1.pth')
    yield folders
    for folder in folders.values():
        (folder / 'epoch_1.pth').unlink()


@pytest.mark.long
def test_both_tasks_from_their_checkpoints(call_tool, made_up, trained, workplace):
    """What is in no file, the model predicts; the metrics are those of mmdet and mmpretrain."""
    code, stderr = call_tool(TOOL, *trained.values(), '--device', 'cpu', '--no-speed', '--gates', 1, '--images', 2)
    assert (code, 'warning' in stderr) == (0, False)
    page = (workplace / 'work_dirs' / 'report.html').read_text().replace('<wbr>', '')
    found = made_up.tables(page)
    ap = found['COCO average precision (0 to 1) on 4 images of data/digits/det/annotations/instances_val.json']
    top1 = found['Accuracy in percent on 20 images']
    for cfg_name, row, key in (
        ('retinanet_ccd_r18_fpn_digits', ap[1], 'coco/bbox_mAP'),
        ('ccd_r18_digits', top1[1], 'accuracy/top1'),
    ):
        cfg = mmccd.get_config(cfg_name)
        if cfg_name.startswith('retinanet'):
            cfg.model.test_cfg.update(score_thr=0.0, max_per_img=20)
        cfg.update(
            work_dir=str(workplace / 'test'), load_from=str(trained[cfg_name] / 'epoch_1.pth'), experiment_name=cfg_name
        )
        expected = Runner.from_cfg(cfg).test()[key]
        assert float(row[1]) == pytest.approx(expected, abs=1e-3)
    assert len(re.findall(r'alt="attention maps of ', page)) == 2
    assert page.count('<dt>predictions</dt><dd>epoch_1.pth</dd>') == 2
    code, _ = call_tool(TOOL, *trained.values(), *SCRATCH, '--limit', 3, '--out', 'few.html')
    few = (workplace / 'few.html').read_text().replace('<wbr>', '')
    assert code == 0
    assert 'Accuracy in percent on 3 images' in made_up.tables(few)
    assert 'epoch_1.pth, on the first 3 of 4 images' in few


def test_speed_and_recorded_runs(call_tool, made_up, toy_coco, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = made_up.detection_config(toy_coco)
    made_up.detection_run(tmp_path / 'run', cfg)
    assert call_tool(TOOL, 'run', '--record', 'docs/runs/run', '--command', 'make it', '--device', 'cpu')[0] == 0
    assert 'docs/runs/run/run.py' in capsys.readouterr().out.splitlines()
    code, stderr = call_tool(TOOL, 'run', 'docs/runs/run', '--device', 'cpu', '--speed', '0.01', '--gates', '0')
    assert (code, 'warning' in stderr) == (0, False)
    page = (tmp_path / 'report.html').read_text()
    assert re.fullmatch(r'report\.html: 0\.\d MB\n', capsys.readouterr().out)
    [times] = [t for c, t in made_up.tables(page).items() if c.startswith('Forward of one image, measured by this')]
    assert times[0] == ['time', f'{tmp_path.name}/run', 'runs/run']
    assert [row[0] for row in times[1:]] == [
        'ms, median',
        'ms, 20th percentile',
        'ms, 80th percentile',
        'relative to the first run',
    ]
    assert float(re.sub('[★ ]', '', times[1][1])) > 0
    assert times[-1][1] == '1.00'
    assert 'measured with random weights' in page


def test_bad_input_is_one_clear_error_and_writes_nothing(call_tool, made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'void').mkdir()
    (tmp_path / 'file').touch()
    made_up.write_lines(tmp_path / 'logs' / '20260101_000000', made_up.training(range(10, 31, 10), 30))
    for args, message in (
        (
            ('empty', 'void'),
            'there is nothing to report:\n  empty: there is no config that can be read; there is no '
            'log of a training (scalars.json)\n  void: there is no config',
        ),
        (('logs', 'none', 'empty', 'file'), "error: WORK_DIR must be a folder that exists, got 'none', 'file'\n"),
        (('logs', '--device', 'gpu'), "device 'gpu' cannot be used: "),
        (('logs', '--limit', '0'), '--limit must be at least 1, got 0\n'),
        (('logs', '--speed', '-1'), '--speed must be a time in seconds, got -1.0\n'),
        (('logs', '--out', 'no/where.html'), "--out must be a file in a folder that exists, got 'no/where.html'\n"),
        (('logs', '--record', 'x'), '--record takes one WORK_DIR, all of its images '),
        (('logs', '--record', 'x', '--command', 'y'), 'logs cannot be recorded: it needs a config and the log of a '),
    ):
        code, stderr = call_tool(TOOL, *args)
        assert code == 2, args
        assert stderr.startswith('error: ') and message in stderr, (args, stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty', 'file', 'logs', 'void']
    code, stderr = call_tool(TOOL, 'empty', 'logs', *SCRATCH)
    assert code == 0
    assert [line for line in stderr.splitlines() if 'empty' in line] == [
        'warning: nothing to report of empty: there is no config that can be read; there is no log of a training '
        '(scalars.json)'
    ]
    page = (tmp_path / 'report.html').read_text()
    assert made_up.tables(page)['Training, from the logs'][0] == ['quantity', 'logs']
    assert '<li>there is no config that can be read</li>' in page


def test_page_lies_beside_what_it_is_about(call_tool, made_up, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run in ('a/x', 'a/y', 'a/y/again', 'b/z'):
        made_up.write_lines(tmp_path / run / '20260101_000000', made_up.training(range(10, 31, 10), 30))
    for folders, out in (
        (['a/x'], 'a/x'),
        (['a/x', 'a/../a/x/'], 'a/x'),
        (['a/x', 'a/y'], 'a'),
        (['a/y/again', tmp_path / 'a/y'], 'a'),
        (['a/x', 'b/z'], ''),
    ):
        assert call_tool(TOOL, *folders, *SCRATCH)[0] == 0
        page = tmp_path / out / 'report.html'
        assert capsys.readouterr().out.splitlines()[-1].startswith(f'{page.relative_to(tmp_path)}: 0.')
        page.unlink()
    assert not list(tmp_path.rglob('report.html'))
    if os.geteuid():  # root may write anywhere
        (tmp_path / 'b').chmod(0o555)
        code, stderr = call_tool(TOOL, 'b/z', '--out', 'b/report.html')
        (tmp_path / 'b').chmod(0o755)
        assert (code, stderr) == (2, "error: nothing can be written into 'b': choose another --out\n")


# ------------------------------------------------------------------------------------------------ in a browser

FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
]


@pytest.fixture
def browser():
    sync_api = pytest.importorskip('playwright.sync_api')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('there is no Chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.slow
def test_in_chromium(browser, call_tool, made_up, toy_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('r18', 'ccd_r18'):
        made_up.detection_run(
            tmp_path / f'a_rather_long_name_of_retinanet_{name}_fpn_2x_coco',
            made_up.detection_config(toy_coco, f'retinanet_{name}_fpn_digits'),
        )
    code, stderr = call_tool(TOOL, *sorted(tmp_path.glob('a_*')), '--device', 'cpu', '--no-speed')
    assert (code, 'warning' in stderr) == (0, False)

    context = browser.new_context(viewport=dict(width=1280, height=900))
    page, complaints, requests = context.new_page(), [], []
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    page.goto(f'file://{tmp_path}/report.html')
    assert page.title() == '2 runs compared'

    classes = page.locator('table[aria-label="AP of each class"]')
    head = classes.locator('thead th').nth(2)

    def order() -> list[str]:
        return classes.locator('tbody th').all_inner_texts()

    assert (order(), head.get_attribute('aria-sort')) == (['cat', 'dog'], None)
    head.locator('button').click()
    assert (order(), head.get_attribute('aria-sort')) == (['cat', 'dog'], 'descending')
    head.locator('button').focus()
    page.keyboard.press('Enter')
    assert (order(), head.get_attribute('aria-sort')) == (['dog', 'cat'], 'ascending')
    name = classes.locator('thead th').nth(0)
    name.locator('button').click()
    assert (order(), name.get_attribute('aria-sort')) == (['cat', 'dog'], 'ascending')
    assert head.get_attribute('aria-sort') is None
    # Numbers as numbers, what is missing at the end: 20 seconds before 4 digits of a loss.
    training = page.locator('table[aria-label="Training, from the logs"]')
    training.locator('thead button').nth(1).click()
    values = [float(t.replace(',', '')) for t in training.locator('tbody td:nth-child(2)').all_inner_texts()]
    assert values == sorted(values, reverse=True) and max(values) >= 40

    # The first Tab leads past everything; the arrow keys read a curve.
    page.reload()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'
    page.keyboard.press('Enter')
    assert page.evaluate('document.activeElement.id') == 'main'
    plot = page.locator('svg.plot').first
    plot.focus()
    page.keyboard.press('Home')
    values = plot.locator('xpath=..').locator('.values')
    assert values.inner_text().startswith('iteration 10:')
    page.keyboard.press('ArrowRight')
    assert values.inner_text().startswith('iteration 20:') and values.inner_text().count('0.05') == 2
    plot.hover(position=dict(x=60, y=50))
    assert values.inner_text().startswith('iteration 10:')

    assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
    assert page.locator('svg.boxes use').count() == 3 * 3
    page.set_viewport_size(dict(width=360, height=740))
    assert page.evaluate('document.documentElement.scrollWidth') <= 360
    assert page.locator('button, a').count() > 20
    colours = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert colours[0] != colours[1]
    assert complaints == []
    assert requests and all(r.startswith(('file:', 'data:')) for r in requests)


@pytest.mark.slow
def test_script_in_a_config_does_not_run(browser, made_up, toy_coco, tmp_path, call_tool, monkeypatch):
    """Were something not escaped, the page's own policy would stop it."""
    monkeypatch.chdir(tmp_path)
    made_up.detection_run(tmp_path / 'run', made_up.detection_config(toy_coco))
    assert call_tool(TOOL, 'run', *SCRATCH)[0] == 0
    page = browser.new_page()
    text = (tmp_path / 'run' / 'report.html').read_text().replace('<main', '<script>window.hit = 1</script><main')
    (tmp_path / 'run' / 'report.html').write_text(text)
    page.goto(f'file://{tmp_path}/run/report.html')
    assert page.evaluate('window.hit') is None
    assert page.locator('script').count() == 2
