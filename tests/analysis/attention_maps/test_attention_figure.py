"""Figures of attention maps: sizes, colours and numbers that can be worked out by hand."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from mmccd.analysis.attention_maps import Gate, SeenImage, draw_attention_maps
from mmccd.analysis.attention_maps.figure import _bar_limits, _map_limits
from mmccd.analysis.canvas import ALPHA, COLORS, DPI, Canvas, distinct, draw_legend

LEFT, CELL = 2.0 + 2 * 0.15 + 0.12, 1.5 + 0.12  # inches: where panels begin, and from one to the next


def seen(*gates, size=(64, 64)):
    return SeenImage(np.full((*size, 3), 255, np.uint8), size, list(gates))


def maps(name, values, kind='spatial'):
    return Gate(name, 'CCD', kind, 'gate', np.asarray(values, np.float32))


def draw(*args, **options):
    return np.asarray(Image.open(io.BytesIO(draw_attention_maps(*args, **options))).convert('RGB'))


def assert_size(figure, height, width):
    assert figure.shape[:2] == pytest.approx((height * DPI, width * DPI), abs=1)


def test_two_stages_stand_side_by_side_and_share_a_scale():
    gates = [maps(f'layer{s}.{b}.ccd', np.full((2, 2, 2), v)) for s, b, v in ((1, 0, 0), (1, 1, 1), (2, 0, 1))]
    gates[0].values[:, 0, 1] = 1
    figure = draw(seen(*gates), 'a.png', limits=(0, 1))
    # Title, caption, panel: 0.24 + 0.17 + 1.5, with margins; beside it the larger image, name and legend.
    assert_size(figure, height=0.3 + 2 + 0.12 + 0.15 + 0.55, width=LEFT + 3 * CELL + 0.03)

    def color(column, x, y):
        return figure[round((0.15 + 0.24 + 0.17 + 1.5 * y) * DPI), round((LEFT + CELL * column + 1.5 * x) * DPI)] / 255

    low, high = (ALPHA * np.array(colormaps[COLORS](v)[:3]) + 1 - ALPHA for v in (0.0, 1.0))  # over a white image
    for column, x, y, expected in (
        (0, 0.25, 0.25, low),
        (0, 0.75, 0.25, high),
        (0, 0.75, 0.75, low),
        (1, 0.5, 0.4, high),
        (2, 0.5, 0.4, high),
    ):
        assert np.allclose(color(column, x, y), expected, atol=0.01), (column, x, y)


def test_padding_is_cut_off_and_the_aspect_kept():
    gate = maps('layer1.0.ccd', [[[0, 1, 1, 1]]])  # 4 cells over 64 pixels, of which the image has 32
    image = SeenImage(np.full((16, 32, 3), 255, np.uint8), (16, 64), [gate])
    figure = draw(image, 'a.png', limits=(0, 1))
    y = round((0.15 + 0.24 + 0.17 + 0.375) * DPI)
    row = figure[y, round(LEFT * DPI) : round((LEFT + 1.5) * DPI)].astype(float)
    assert abs(row[:100] - row[50]).max() < 3
    assert abs(row[125:] - row[-30]).max() < 3
    assert abs(row[50] - row[-30]).max() > 60  # a border in the middle of the panel, 0.75 inches high
    assert (figure[round((0.56 + 0.8) * DPI), round(LEFT * DPI) :] == 255).all()


def test_groups_of_a_layer_and_their_mean():
    values = np.stack([np.full((2, 2), v) for v in (0.0, 1.0, 0.5)])
    one = draw(seen(maps('layer1.0.ccd', values)), 'a.png', groups=['mean', 1], limits=(0, 1))
    assert_size(one, height=3.12, width=LEFT + 2 * CELL + 0.03)
    y, xs = round(1.3 * DPI), [round((LEFT + 0.75 + CELL * i) * DPI) for i in (0, 1)]
    for x, v in zip(xs, (0.5, 1.0)):
        assert np.allclose(one[y, x] / 255, ALPHA * np.array(colormaps[COLORS](v)[:3]) + 1 - ALPHA, atol=0.01)


def test_many_panels_wrap():
    gate = maps('layer1.0.ccd', np.random.rand(20, 2, 2))
    figure = draw(seen(gate), 'a.png', groups=list(range(20)))
    assert_size(figure, height=0.3 + 0.24 + 3 * (0.17 + 0.12 + 1.5) - 0.12, width=LEFT + 8 * CELL + 0.03)


def test_bars_are_as_high_as_the_numbers():
    values = np.repeat([0.25, 1.0], 50)
    figure = draw(seen(maps('layer1.0.se_layer', values, 'channel')), 'a.png')
    blue = (figure == (0x45, 0x75, 0xB4)).all(-1)
    columns = blue.sum(0)
    full, quarter = columns[columns > 0].max(), np.median(columns[columns > 0][-50:])
    assert abs(full - 0.8 * DPI) <= 3
    assert abs(quarter - 0.2 * DPI) <= 3
    assert abs((columns > 0.5 * DPI).sum() - 0.75 * DPI) <= 3  # half of the channels, the largest first


def test_limits():
    small, large = np.full((1, 1), 2.0), np.linspace(0, 1, 10001).reshape(1, -1)
    assert _map_limits([large]) == pytest.approx((0.01, 0.99))
    assert _map_limits([small, large])[1] == 2.0  # not lost among the many cells of the other
    assert _map_limits([np.full((4, 4), 0.731)]) == pytest.approx((0.7305, 0.7315))  # no colours out of rounding
    assert _map_limits([np.full((4, 4), np.nan)]) == (0, 1)
    assert _bar_limits([np.array([0.5, 0.2]), np.array([0.7])]) == pytest.approx((0, 0.7))
    assert _bar_limits([np.array([-0.5, 0.2])]) == pytest.approx((-0.5, 0.2))
    assert _bar_limits([np.zeros(3)]) == (0, 1)


def test_ends_of_a_range_differ():
    assert distinct(0.25, 0.5) == ['0.250', '0.500']
    assert distinct(0.7310, 0.7315, 0.7320) == ['0.7310', '0.7315', '0.7320']
    assert distinct(0.73102, 0.73104) == ['0.73102', '0.73104']
    assert distinct(0.7310001, 0.7310002) == distinct(0.731, 0.731) == ['0.731', '0.731']
    canvas = Canvas(4, 4)
    draw_legend(canvas, 1, 'gate', (0.731, 0.732))
    assert [t.get_text() for t in canvas.figure.axes[0].get_xticklabels()] == ['0.7310', '0.7315', '0.7320']


def test_names_may_look_like_formulas():
    draw(seen(maps('layer1.0.ccd', np.random.rand(2, 2, 2))), 'price_$5_^{.png', lines=('a' * 100,))


@pytest.mark.parametrize(
    ('kind', 'groups', 'limits', 'message'),
    [
        ('spatial', [0, 4], None, r'group 4 does not exist: layer1\.0\.ccd \(CCD\) has groups 0 to 3$'),
        ('channel', [1], None, 'there are no groups to choose from: CCD gates channels alone'),
        ('channel', ['mean'], (0, 1), 'there are no maps to colour: CCD gates channels alone'),
    ],
)
def test_errors(kind, groups, limits, message):
    values = np.random.rand(4, 2, 2) if kind == 'spatial' else np.random.rand(4)
    with pytest.raises(ValueError, match=message):
        draw_attention_maps(seen(maps('layer1.0.ccd', values, kind)), 'a.png', groups=groups, limits=limits)
