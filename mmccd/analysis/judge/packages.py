"""The modules of a package that can be judged."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from torch import nn

from mmccd.errors import UserError

from .subject import one_line


def modules_of(package: str) -> tuple[list[str], dict[str, str]]:
    """All classes of modules that a package or a module defines.

    Args:
        package (str): Its import name, e.g. ``'timm.layers'``.

    Returns:
        tuple[list[str], dict[str, str]]: ``package.module:Class``, sorted, once each; what cannot be imported, with the
        reason.

    Raises:
        UserError: If the package itself cannot be imported.

    Example:
        >>> modules_of('torch.nn.modules.activation')[0][0]
        'torch.nn.modules.activation:CELU'
    """
    try:
        top = importlib.import_module(package)
    except (Exception, SystemExit) as e:  # what a foreign module does when it is imported is its own
        raise UserError(f'--all: {package} cannot be imported: {one_line(e)}') from e
    names, broken = [package], {}
    if hasattr(top, '__path__'):
        names += [m.name for m in pkgutil.walk_packages(top.__path__, f'{package}.', onerror=lambda name: None)]
    found = set()
    for name in names:
        if name.rpartition('.')[2] == '__main__':
            continue
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as e:
            broken[name] = f'cannot be imported: {one_line(e)}'
            continue
        for key, kind in vars(module).items():
            if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or inspect.isabstract(kind):
                continue
            home = kind.__module__
            if (home == package or home.startswith(f'{package}.')) and not key.startswith('_') and key == kind.__name__:
                found.add(f'{home}:{key}')
    return sorted(found), broken
