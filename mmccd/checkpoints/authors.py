"""The authors' trained models: the download column of the tables that this project reproduces.

The files lie on Google Drive. A large one is answered by a page that asks for a confirmation, and one that was fetched
too often on a day by a page that says so, both with status 200: neither is the file. Names, sizes and checksums are
not published, so that the checksum of the first download is recorded and compared later.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from html import unescape
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode, urljoin

from tqdm import tqdm

from mmccd.errors import UserError, suggest

from .files import write_atomically

SCHEME = 'authors://'
DRIVE = 'https://drive.google.com/uc?export=download&id='
PAGE = 'https://drive.google.com/file/d/{}/view'
RECORD = 'authors.json'  # checksums of first downloads
PARTIAL = '.download'
BLOCK = 1 << 20
ATTEMPTS = 5
_QUOTA = re.compile(rb'quota exceeded|too many users|download quota', re.IGNORECASE)


@dataclass(frozen=True)
class AuthorsModel:
    """A trained model of the authors.

    Attributes:
        name (str): Here, as in ``checkpoints/<name>.pth``.
        file_id (str): On Google Drive.
        arch (str): As :func:`mmccd.checkpoints.convert.parse_arch` reads it.
        parameters (int): Of the whole model.
        metric (str): What the published score is.
        score (float): The authors' own, from the paper and its repository.
        config (str): That tests it.
    """

    name: str
    file_id: str
    arch: str
    parameters: int
    metric: str
    score: float
    config: str


def _classifier(attention: str, file_id: str, parameters: int, top1: float) -> AuthorsModel:
    arch = f'{attention}_r50'.lstrip('_')
    return AuthorsModel(f'{arch}_in1k', file_id, arch, parameters, 'top-1', top1, f'{arch}_8xb32_in1k')


def _detector(arch: str, file_id: str, parameters: int, ap: float) -> AuthorsModel:
    return AuthorsModel(f'{arch}_2x_coco', file_id, arch, parameters, 'box AP', ap, f'{arch}_fpn_2x_legacy_coco')


MODELS = {
    model.name: model
    for model in (
        _classifier('', '1DMHhk99fG8rNZjE2wPh8VWZ5qIBOaYOf', 25_557_032, 75.8974),
        _classifier('se', '1lOXZv0IskrLLbm_z7JqonR6KaQ7lRpKP', 28_088_024, 77.2877),
        _classifier('ge', '1N-UVJhZDkoHnxzhE0p_VRsCgGDExi0iA', 25_557_032, 76.2357),
        _classifier('cbam', '1brCXiQ0LNbqVejQMrY0eVmcwZSGhYFN3', 28_089_624, 77.2840),
        _classifier('sk', '1jwQ-us0G0LSesHGZwmDgjL1W5O7Ekyu6', 26_154_496, 77.3657),
        _classifier('gc', '1GGe9UzVFjMpoRkQVf3td5BrLeb1ZfwVM', 28_105_032, 74.8966),
        _classifier('ccd', '1mHqmrkrWudCk-3DCXL8XWbIjBznOjDLh', 25_559_080, 77.3137),
        _detector('retinanet_r50', '1imZvUrwg6Vy6TFRLAsL62FsF-DyizZXR', 37_968_692, 36.2),
        _detector('retinanet_se_r50', '1ivzPfC_JhpO7DPs6vzlHGxkZBf2sC60p', 40_499_684, 37.4),
        _detector('retinanet_ccd_r50', '1StYpULhwgCwG_ZacBR1bRFqbgt6FRHZr', 37_970_740, 37.8),
        _detector('cascade_rcnn_r50', '1jGUT2KsFggLSJMkH0cgJUJV_p_cSM-7f', 69_394_766, 40.6),
        _detector('cascade_rcnn_gc_r50', '19cv3TReITDMJuvmAleGzzt3H39iq3pYl', 71_942_766, 41.1),
        _detector('cascade_rcnn_ccd_r50', '1655frDSIzUpxjOD4Bt2-l6w0D5DBo2Yn', 69_396_814, 42.5),
    )
}


def find_model(name: str) -> AuthorsModel:
    """The model of a name, with or without ``authors://``; UserError if there is none."""
    short = name.removeprefix(SCHEME)
    if short not in MODELS:
        raise UserError(
            f'the authors have no weights called {short!r}{suggest(short, MODELS)}; see get_weights.py --list'
        )
    return MODELS[short]


def download(model: AuthorsModel, folder: Path, mirror: str | None = None) -> Path:
    """Download a model's file as it is, and compare it with an earlier download of it.

    Args:
        model (AuthorsModel): Which one.
        folder (Path): Where the file appears when it is complete; a download that was cut is continued from there.
            ``authors.json`` in it records the checksums.
        mirror (str, optional): A URL; the file is at ``<mirror>/<file id>`` then. Default: None, Google Drive, by
            gdown where it is installed.

    Returns:
        Path: The file.

    Raises:
        UserError: With what to do, if there is no file, or another one than the first time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{model.name}.original'
    partial = path.with_name(path.name + PARTIAL)
    try:
        if mirror is not None:
            _fetch(f'{mirror.rstrip("/")}/{model.file_id}', partial, model, path)
        elif (gdown := _gdown()) is not None:
            _fetch_by_gdown(gdown, partial, model, path)
        else:
            _fetch(DRIVE + model.file_id, partial, model, path)
        _check_recorded(model, partial, folder / RECORD)
        os.replace(partial, path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free / 1e6
            raise UserError(
                f'{model.name}: {folder} is full ({free:.0f} MB free); what has arrived is kept and continued'
            ) from e
        raise UserError(f'{model.name}: {e}') from e
    return path


def _by_hand(model: AuthorsModel, path: Path) -> str:
    return (
        f'open {PAGE.format(model.file_id)} in a browser, save the file as {path}, and run the same command again with '
        f'--original {path}'
    )


def _gdown() -> Any:
    try:
        import gdown
    except ImportError:
        return None
    return gdown


def _fetch_by_gdown(gdown: Any, partial: Path, model: AuthorsModel, path: Path) -> None:
    try:
        done = gdown.download(id=model.file_id, output=str(partial), quiet=not sys.stderr.isatty(), resume=True)
    except OSError:
        raise
    except Exception as e:  # its own exceptions, and those of requests, changed names between versions
        done, reason = None, str(e).strip().partition('\n')[0]
    else:
        reason = 'gdown found no file'
    if not done or not partial.is_file():
        raise UserError(f'{model.name} cannot be downloaded: {reason}. {_by_hand(model, path)}')
    _check_content(partial, model, path)


def _fetch(url: str, partial: Path, model: AuthorsModel, path: Path) -> None:
    """Download to ``partial``, from where it ends; through a page that asks for a confirmation."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    for attempt in range(ATTEMPTS):
        begin = partial.stat().st_size if partial.is_file() else 0
        try:
            complete = _receive(opener, url, partial, begin, model, path)
        except urllib.error.HTTPError as e:
            if e.code == 416 and begin:  # nothing behind what is there: it was complete, or is of another file
                partial.unlink()
                continue
            raise UserError(
                f'{model.name} cannot be downloaded: {url} answers {e.code} {e.reason}. {_by_hand(model, path)}'
            ) from e
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
            if attempt + 1 == ATTEMPTS:
                raise UserError(
                    f'{model.name} cannot be downloaded: {getattr(e, "reason", e)}. The same command continues; '
                    f'or {_by_hand(model, path)}'
                ) from e
            continue
        if complete:
            return _check_content(partial, model, path)
    size = partial.stat().st_size if partial.is_file() else 0
    raise UserError(
        f'{model.name}: the download was cut {ATTEMPTS} times, the last time after {size:,} bytes. The same command '
        f'continues; or {_by_hand(model, path)}'
    )


def _receive(
    opener: Any, url: str, partial: Path, begin: int, model: AuthorsModel, path: Path, confirmed: bool = False
) -> bool:
    """One request; returns whether the whole file is there afterwards."""
    request = urllib.request.Request(url, headers={'Range': f'bytes={begin}-'} if begin else {})
    with opener.open(request, timeout=60) as answer:
        length = answer.headers.get('Content-Length')
        head = answer.read(512)
        if 'text/html' in (answer.headers.get('Content-Type') or '') or _is_html(head):
            page = head + answer.read(BLOCK)
            form = None if confirmed or _QUOTA.search(page) else _confirmation(page, answer.geturl())
            if form is None:
                raise UserError(_page_instead(page, model, path))
            return _receive(opener, form, partial, begin, model, path, confirmed=True)
        appends = begin > 0 and answer.status == 206
        expected = None if length is None else int(length) + (begin if appends else 0)
        with open(partial, 'ab' if appends else 'wb') as file:
            _copy(head, answer, file, begin if appends else 0, expected, model.name)
    return expected is None or partial.stat().st_size >= expected


def _copy(head: bytes, answer: Any, file: BinaryIO, begin: int, expected: int | None, name: str) -> None:
    with tqdm(total=expected, initial=begin, unit='B', unit_scale=True, desc=name, disable=None) as bar:
        block = head
        while block:
            file.write(block)
            bar.update(len(block))
            try:
                block = answer.read(BLOCK)
            except http.client.IncompleteRead as e:  # what came before the cut is kept
                file.write(e.partial)
                return


def _is_html(head: bytes) -> bool:
    return head.lstrip()[:15].lower().startswith((b'<!doctype html', b'<html', b'<head'))


def _confirmation(page: bytes, url: str) -> str | None:
    """The URL behind a page that asks whether to download a file that is too large to be scanned for viruses."""
    text = page.decode(errors='replace')
    form = re.search(r'<form[^>]*\baction="([^"]+)"[^>]*>(.*?)</form>', text, re.DOTALL | re.IGNORECASE)
    if form is None:
        link = re.search(r'href="([^"]*[?&](?:amp;)?confirm=[^"]+)"', text)
        return urljoin(url, unescape(link.group(1))) if link else None
    fields = {}
    for tag in re.findall(r'<input[^>]*>', form.group(2), re.IGNORECASE):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes.get('type', '').lower() == 'hidden' and 'name' in attributes:
            fields[attributes['name']] = unescape(attributes.get('value', ''))
    if not fields:
        return None
    action = urljoin(url, unescape(form.group(1)))
    return f'{action}{"&" if "?" in action else "?"}{urlencode(fields)}'


def _page_instead(page: bytes, model: AuthorsModel, path: Path) -> str:
    if _QUOTA.search(page):
        reason = 'its download quota of today is used up: try again tomorrow'
    else:
        title = re.search(rb'<title>(.*?)</title>', page, re.DOTALL | re.IGNORECASE)
        shown = ' '.join(title.group(1).decode(errors='replace').split()) if title else 'without a title'
        reason = f'the answer is a page in HTML ({shown}), not the file'
    return f'{model.name} cannot be downloaded: {reason}; or {_by_hand(model, path)}'


def _check_content(partial: Path, model: AuthorsModel, path: Path) -> None:
    """Refuse what is no checkpoint at a glance; a file that cannot be continued is removed."""
    with open(partial, 'rb') as f:
        head = f.read(512)
        page = head + f.read(BLOCK) if _is_html(head) else b''
    if page or not head:
        partial.unlink()
        raise UserError(
            _page_instead(page, model, path)
            if page
            else f'{model.name} cannot be downloaded: the file is empty; {_by_hand(model, path)}'
        )


def _check_recorded(model: AuthorsModel, path: Path, record: Path) -> None:
    """Compare a file with what was downloaded under this name before, or record its SHA-256."""
    digest = sha256_of(path)
    try:
        known: dict[str, str] = json.loads(record.read_text())
    except FileNotFoundError:
        known = {}
    except ValueError as e:
        raise UserError(f'{model.name}: {record} is damaged: remove it, and checksums are recorded again') from e
    if known.get(model.name, digest) != digest:
        path.unlink()
        raise UserError(
            f'{model.name}: the file is another one than at the first download: SHA-256 {digest}, not '
            f'{known[model.name]}. If the authors have replaced it, remove its line from {record}'
        )
    if model.name not in known:
        write_atomically(str(record), (json.dumps({**known, model.name: digest}, indent=2) + '\n').encode())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    total = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(BLOCK):
            total.update(block)
    return total.hexdigest()
