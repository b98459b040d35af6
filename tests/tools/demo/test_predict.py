"""The first prediction: what it prints, without data and without training."""

from __future__ import annotations

import pytest

from mmccd.checkpoints.zoo import list_zoo


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in list_zoo() if not name.startswith('retinanet')][-1:])
def test_photographs(root, call_tool, capsys, name):
    """The garment that each photograph is called after, by far."""
    images = [str(root / 'zoo' / 'images' / f'{image}.png') for image in ('bag', 'trouser')]
    code, _ = call_tool('demo/predict.py', *images, '--weights', f'zoo://{name}')
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    first = lines.index(f'zoo://{name}')
    for line, image, path in zip(lines[first + 1 :], ('bag', 'trouser'), images):
        shown, garment, score = line.strip().rsplit(' ', 2)
        assert (shown, garment) == (f'{path}:', image)
        assert float(score) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in list_zoo() if name.startswith('retinanet')])
def test_scene(root, call_tool, capsys, name):
    """Boxes within the scene, and a garment that is in it."""
    code, _ = call_tool('demo/predict.py', root / 'zoo' / 'images' / 'scene.png')
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    found = [line.split(' at ') for line in lines if ' at [' in line]
    assert found
    garments = {entry.split()[0] for entry, _ in found}
    assert garments & {'ankle-boot', 'coat', 't-shirt', 'trouser'}
    for _, box in found:
        x1, y1, x2, y2 = map(int, box.strip('[]').split(','))
        assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128


def test_what_is_not_there(refused, tmp_path):
    assert "image 'no_such.png' cannot be used" in refused('demo/predict.py', 'no_such.png')
    (tmp_path / 'text.png').write_text('no image')
    assert "text.png' cannot be used" in refused('demo/predict.py', tmp_path / 'text.png')
    assert 'did you mean' in refused('demo/predict.py', '--weights', 'r18-w32_fashin')
