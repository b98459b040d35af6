"""CVAT for images 1.1: shapes, subsets, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmccd.data.formats import Findings, cvat
from mmccd.data.formats.shapes import tidy
from mmccd.errors import UserError


@pytest.fixture
def one(label_folders, tmp_path):
    """Reads one image with these entries; returns labels and findings."""

    def check(entries: str, **options):
        label_folders.save_image(tmp_path / 'one' / 'a.jpg')
        text = label_folders.cvat_xml(label_folders.cvat_image(3, 'a.jpg', entries), **options)
        label_folders.write(tmp_path / 'one' / 'annotations.xml', text)
        findings = Findings()
        labelled = cvat.read(str(tmp_path / 'one'), findings)
        return [label for images in labelled.splits.values() for i in images for label in i.labels], findings

    return check


def test_shapes(one, label_folders):
    box = (4, 3, 20, 10)
    attribute = '<box label="dog" xtl="4.00" ytl="3.00" xbr="24.00" ybr="13.00"><attribute name="x">1</attribute></box>'
    labels, findings = one(
        attribute
        + label_folders.cvat_box('cat', (9, -2, 10, 20), ' rotation="90.00"')
        + label_folders.cvat_box('cat', box, ' rotation="180.0"')
        + '<polygon label="cat" points="4.00,3.00;24.00,5.00;10.00,13.00"></polygon>'
        + '<ellipse label="cat" cx="14" cy="8" rx="5" ry="10" rotation="90"/>'
        + '<mask label="cat" rle="3, 5" left="4" top="3" width="20" height="10"/>'
        + '<polyline label="cat" points="1,1;2,2"/><points label="cat" points="1,1"/><tag label="cat"/>'
        + '<cuboid label="cat"/><skeleton label="cat"><points label="nose" points="1,1"/></skeleton>'
    )
    assert [(label.name, tidy(label.box)) for label in labels] == [('dog', box), *[('cat', box)] * 5]
    assert findings.counts == {'enclosed': 3, 'no-box': 5}
    assert 'annotations.xml, image 3 a.jpg, entry 2 (box): turned by 90 degrees' in findings.text()


@pytest.mark.parametrize(
    'entry, kind, message',
    [
        ('<box label="owl" xtl="4" ytl="3" xbr="24" ybr="13"/>', 'label-class', "label 'owl', not of cat, dog"),
        ('<box xtl="4" ytl="3" xbr="24" ybr="13"/>', 'label-class', "label '', not"),
        ('<box label="cat" xtl="4" ytl="3" xbr="24"/>', 'label', "must be numbers, are '4', '3', '24', None"),
        ('<box label="cat" xtl="24" ytl="3" xbr="4" ybr="13"/>', 'label', 'the first corner is not above the second'),
        ('<polygon label="cat" points="4,3;5,6"/>', 'label', 'points must be three pairs or more'),
        ('<polygon label="cat" points="4,3;5,6;x,1"/>', 'label', 'points must be three pairs or more'),
        ('<ellipse label="cat" cx="14" cy="8" rx="5"/>', 'label', 'cx, cy, rx, ry must be numbers'),
        ('<hexagon label="cat"/>', 'label', '<hexagon> is not known'),
    ],
)
def test_bad_entries_are_named(one, label_folders, entry, kind, message):
    labels, findings = one(label_folders.cvat_box('cat', (4, 3, 20, 10)) + entry)
    assert len(labels) == 1
    assert findings.counts == {kind: 1}
    assert 'image 3 a.jpg, entry 2 (' in findings.text() and message in findings.text()


def test_subsets_names_and_labels(label_folders, tmp_path):
    root = label_folders.cvat(tmp_path / 'project')
    findings = Findings()
    labelled = cvat.read(str(root), findings)
    assert {s: [Path(i.path).name for i in images] for s, images in labelled.splits.items()} == {
        'train': ['a.jpg', 'b.png', 'turned.jpg'],
        'val': ['c.jpg', 'd.png'],
    }
    # Declared in the project's order, also what no box has; parts of skeletons are no classes.
    text = (root / 'annotations.xml').read_text()
    part = '<label><name>nose</name><type>points</type><parent>cat</parent></label>'
    text = text.replace('<labels>', f'<labels><label><name>zebra</name></label>{part}')
    # The default subset has no name; a frame of a video has no suffix; folders in names are splits.
    box = label_folders.cvat_box('cat', (4, 3, 20, 10))
    frames = label_folders.cvat_image(7, 'frame_000001', box, ' subset="default"')
    frames += label_folders.cvat_image(8, 'test/e.png', box)
    label_folders.save_image(root / 'images' / 'default' / 'frame_000001.PNG')
    label_folders.save_image(root / 'images' / 'test' / 'e.png')
    (root / 'annotations.xml').write_text(text.replace('</annotations>', f'{frames}</annotations>'))
    labelled = cvat.read(str(root), findings)
    assert {s: len(images) for s, images in labelled.splits.items()} == dict(train=3, val=2, all=1, test=1)
    assert labelled.classes == ('zebra', 'cat', 'dog')
    assert findings.counts == {}


def test_bad_files(label_folders, tmp_path):
    label_folders.save_image(tmp_path / 'a.jpg')
    (tmp_path / 'void').mkdir()
    with pytest.raises(UserError, match='has no XML file of CVAT'):
        cvat.read(str(tmp_path / 'void'), Findings())
    image = label_folders.cvat_image(0, 'a.jpg', '')
    for name, text, message in (
        ('video', label_folders.cvat_xml('<track id="0"/>'), "an export 'CVAT for video 1.1': export 'CVAT for images"),
        ('cut', label_folders.cvat_xml(image)[:-5], 'is no XML file: '),
        ('double', label_folders.cvat_xml(image, ('cat', '')), r"names\[1\] must be the name of a class, is ''"),
    ):
        label_folders.write(tmp_path / f'{name}.xml', text)
        with pytest.raises(UserError, match=rf'{name}\.xml:? ?(is )?{message}'):
            cvat.read(str(tmp_path / f'{name}.xml'), Findings())
    with pytest.raises(UserError, match=r'has several exports of CVAT, .*: give one'):
        cvat.find_file(str(tmp_path))
    for path in tmp_path.glob('*.xml'):
        path.unlink()
    wrong = image.replace('"40"', '"41"') + image.replace('a.jpg', 'none.jpg') + image.replace('name="a.jpg"', '')
    label_folders.write(tmp_path / 'it.xml', label_folders.cvat_xml(image + image + wrong))
    findings = Findings()
    labelled = cvat.read(str(tmp_path), findings)
    assert len(labelled.splits['all']) == 1
    assert findings.counts == {'image-double': 2, 'label-without-image': 1, 'label-file': 1}
