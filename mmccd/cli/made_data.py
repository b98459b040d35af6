"""What the converters share that make demo data: folders that appear whole, their manifests, and COCO files.

A dataset is built in a folder beside its own, with ``.partial`` behind its name, and renamed when it is complete. The
manifest, a JSON file in it, names the tool that made it; it has the key ``sha256`` only if the folder is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd.errors import UserError

from .outputs import check_folder


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON, the keys in the order in which they were set."""
    path.write_text(json.dumps(content, indent=indent) + '\n')


def made_sha256(manifest: str | Path, make: str) -> str:
    """Hash of the files of made data.

    Args:
        manifest (str | Path): The manifest that its converter left in its folder.
        make (str): Command that makes the data, for the message.

    Raises:
        UserError: If there is no such manifest, or it is that of a folder that is not complete.
    """
    try:
        found = json.loads(Path(manifest).read_text(encoding='utf-8'))['sha256']
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise UserError(f'{manifest} is no manifest of complete data: make it with: {make}')
    return found


# Name: default, lowest, highest, help.
Options = Mapping[str, tuple[Any, Any, Any, str]]


def add_options(parser: argparse.ArgumentParser, out: str, options: Options) -> None:
    """Add ``--out``, a number for each of ``options``, and ``--overwrite``."""
    parser.add_argument('--out', default=out, help=f'folder to make (default {out})')
    for name, (default, low, high, text) in options.items():
        text += f', {low} to {high} (default {default})'
        parser.add_argument(f'--{name}', type=type(default), default=default, metavar='N', help=text)
    parser.add_argument('--overwrite', action='store_true', help='replace what this tool made')


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace, options: Options) -> None:
    """End the program with status 2 if an option of :func:`add_options` is out of its range."""
    for name, (_, low, high, _) in options.items():
        value = getattr(args, name.replace('-', '_'))
        if not low <= value <= high:
            parser.error(f'argument --{name}: must be from {low} to {high}, got {value}')
    if not args.out or not Path(args.out).resolve().name:
        parser.error(f'argument --out: must name a folder, got {args.out!r}')


def run_converter(tool: str, make: Callable[[], str], packages: str = '') -> int:
    """Print what ``make`` returns, or one line with what is wrong.

    Args:
        tool (str): Name of the converter.
        make (Callable): Makes the data.
        packages (str): What pip installs where ``make`` raises ImportError.

    Returns:
        int: The exit status: 0; 2 for a UserError, 1 for an ImportError.
    """
    try:
        print(make())
    except UserError as e:
        print(f'{tool}: {e}', file=sys.stderr)
        return 2
    except ImportError as e:
        print(f'{tool}: {e}: run pip install {packages}', file=sys.stderr)
        return 1
    return 0


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of ``name==version`` in ``folder``, by pip from the package index, without what it needs.

    Nothing is installed, and a wheel that is there is not downloaded again.

    Raises:
        UserError: If there is none afterwards.
    """
    name, version = requirement.split('==')
    path = folder / f'{name.replace("-", "_")}-{version}-py3-none-any.whl'
    if not path.is_file():
        command = [sys.executable, '-m', 'pip', 'download', requirement, '--no-deps', '--only-binary', ':all:', '-d']
        command.append(str(folder))
        print('$ ' + ' '.join(command), flush=True)
        if subprocess.run(command).returncode or not path.is_file():
            raise UserError(
                f'{requirement} could not be downloaded: fetch the wheel elsewhere and name it with --wheel'
            )
    return path


@contextmanager
def reading_wheel(path: Path, requirement: str) -> Iterator[zipfile.ZipFile]:
    """The wheel of ``name==version``, open as a zip; inside, whatever is wrong with it is a UserError."""
    try:
        with zipfile.ZipFile(path) as wheel:
            yield wheel
    except FileNotFoundError as e:
        raise UserError(f'--wheel: {path} does not exist') from e
    except KeyError as e:  # zipfile's message names the member
        raise UserError(f'{path}: {e.args[0]}: is it the wheel of {requirement}?') from e
    except (OSError, zipfile.BadZipFile) as e:
        raise UserError(f'{path} cannot be read as a wheel: {e}') from e


def licence_in(wheel: zipfile.ZipFile, name: str, requirement: str) -> bytes:
    """The licence file of this name that comes with a wheel; UserError if there is none."""
    found = [n for n in wheel.namelist() if '.dist-info/' in n and n.endswith(f'/{name}')]
    if not found:
        raise UserError(f'{wheel.filename} has no {name}: is it the wheel of {requirement}?')
    return wheel.read(found[0])


@dataclass(frozen=True)
class DataFolder:
    """A folder that a converter makes.

    Attributes:
        path (Path): Where it is, or will be.
        tool (str): Name of the converter.
        version (str): Increases when the same parameters give other files.
        manifest (str): File name of the manifest.
    """

    path: Path
    tool: str
    version: str
    manifest: str

    @property
    def partial(self) -> DataFolder:
        """The folder that it is built in."""
        return DataFolder(self.path.with_name(f'{self.path.name}.partial'), self.tool, self.version, self.manifest)

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest that this tool left; None if there is none."""
        try:
            manifest = json.loads((self.path / self.manifest).read_text())
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and manifest.get('tool') == self.tool else None

    def write_manifest(self, **entries: Any) -> dict[str, Any]:
        """Write the manifest; without ``sha256`` among the entries, it marks an interrupted build as ours."""
        manifest = dict(tool=self.tool, version=self.version, **entries)
        write_json(self.path / self.manifest, manifest, indent=2)
        return manifest

    def complete(self, **entries: Any) -> dict[str, Any]:
        """Write the manifest of a complete folder, with the hash of its files; returns it."""
        return self.write_manifest(**entries, sha256=self.hash())

    def make(
        self, parameters: dict[str, Any], overwrite: bool, build: Callable[[DataFolder, dict[str, Any]], dict[str, Any]]
    ) -> str:
        """Make the dataset unless it exists with these parameters; returns what was done.

        Args:
            parameters (dict): What the files depend on.
            overwrite (bool): Whether to replace what this tool made with other parameters.
            build (Callable): Writes the files into a new folder, and returns its manifest.

        Raises:
            UserError: If something else is in its place.
        """
        found = self.read_manifest()
        if found and not overwrite:
            complete, version = found.get('sha256'), found.get('version')
            if complete and (version, found.get('parameters')) == (self.version, parameters):
                return f'{self.path} exists already, made with these parameters'
            state = 'has' if complete else 'is incomplete, of'
            state += f' version {version} with {found.get("parameters")}'
            raise UserError(f'{self.path} {state}: pass --overwrite or choose another --out')
        check_folder(str(self.path.parent), '--out')
        self.check_own()
        self.partial.remove()
        manifest = build(self.partial, parameters)
        self.publish()
        return f'made {self.path}: {json.dumps(manifest["counts"])}, sha256 {manifest["sha256"]}'

    def hash(self) -> str:
        """SHA-256 over the name and content of every file but the manifest, in sorted order."""
        total = hashlib.sha256()
        for name in sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob('*') if p.is_file()):
            if name != self.manifest:
                content = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
                total.update(f'{content}  {name}\n'.encode())
        return total.hexdigest()

    def check_own(self) -> None:
        """Raise UserError if something exists here, or where it is built, that this tool did not make."""
        for folder in (self, self.partial):
            path = folder.path
            if path.exists() and not folder.read_manifest() and not (path.is_dir() and not any(path.iterdir())):
                raise UserError(f'{path} was not made by this tool: move it or choose another --out')

    def remove(self) -> None:
        """Delete a folder of ours, or an empty one; if interrupted, it is still known as incomplete."""
        manifest = self.read_manifest()
        if manifest:
            write_json(self.path / self.manifest, {**manifest, 'sha256': None}, indent=2)
            for entry in self.path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
            shutil.rmtree(self.path)
        elif self.path.exists():
            self.path.rmdir()  # fails on a folder with anything in it

    def publish(self) -> None:
        """Put the built folder in the place of this one, which is deleted only now."""
        self.remove()
        self.partial.path.rename(self.path)


class CocoFile:
    """A COCO annotation file in the making; ids count from 1.

    Args:
        description (str): What it is.
        categories (Sequence[str]): Names, in the order of their ids.
        licenses (Sequence[str]): Names of licences.
    """

    def __init__(self, description: str, categories: Sequence[str], licenses: Sequence[str] = ()) -> None:
        self.content: dict[str, Any] = dict(
            info=dict(description=description),
            licenses=[dict(id=i, name=name, url='') for i, name in enumerate(licenses, 1)],
            categories=[dict(id=i, name=name) for i, name in enumerate(categories, 1)],
            images=[],
            annotations=[],
        )

    def add_image(self, file_name: str, width: int, height: int, **more: Any) -> int:
        """Add an image; returns its id."""
        image_id = len(self.content['images']) + 1
        self.content['images'].append(dict(id=image_id, file_name=file_name, width=width, height=height, **more))
        return image_id

    def add_box(self, image_id: int, category_id: int, bbox: Sequence[int], iscrowd: int = 0, **more: Any) -> None:
        """Add an object with its box (x, y, width, height) in pixels."""
        annotations = self.content['annotations']
        entry = dict(id=len(annotations) + 1, image_id=image_id, category_id=category_id, bbox=list(bbox))
        annotations.append(dict(**entry, area=bbox[2] * bbox[3], iscrowd=iscrowd, **more))

    def write(self, path: Path) -> None:
        write_json(path, self.content)
