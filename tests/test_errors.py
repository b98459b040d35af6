"""The end of messages about names."""

from __future__ import annotations

import pytest

from mmccd.errors import UserError, suggest

NAMES = ['groups', 'ratio', 'scales', 'similarity']


@pytest.mark.parametrize(
    ('name', 'options', 'text'),
    [
        ('grops', {}, "; did you mean 'groups'?"),
        ('colour', {}, ''),
        ('scale', dict(n=2), "; did you mean 'scales'?"),
        ('s', dict(n=2, cutoff=0.1), "; did you mean 'scales' or 'groups'?"),
        ('grops', dict(prefix='configs/'), "; did you mean 'configs/groups'?"),
    ],
)
def test_suggest(name, options, text):
    assert suggest(name, NAMES, **options) == text
    assert suggest(name, iter(NAMES), **options) == text


def test_user_errors_are_value_errors():
    with pytest.raises(ValueError, match='no'):
        raise UserError('no')
