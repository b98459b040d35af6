"""Downloads of the authors' weights, from a server on this machine that behaves like their host."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import sys
import threading
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from mmccd.checkpoints import authors
from mmccd.checkpoints.authors import MODELS, RECORD, AuthorsModel, download, find_model
from mmccd.errors import UserError

MODEL = AuthorsModel('tiny_in1k', 'FILE-ID', 'r18', 1, 'top-1', 1.0, 'r18_8xb32_in1k')
CONTENT = bytes(range(256)) * 20_000  # 5 MB
CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="/download" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="FILE-ID"><input type="hidden" name="confirm" value="t&amp;1">
<input type="hidden" name="uuid" value="8c"></form></body></html>"""
QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry, you can&#39;t view or
download this file at this time. Too many users have viewed or downloaded this file recently.</body></html>"""
SIGN_IN = '<html><head><title>Sign in -\n Accounts</title></head><body><form action="/login"></form></body></html>'


class Host(http.server.BaseHTTPRequestHandler):
    """Answers by what ``server.behaviour`` says; ``server.asked`` has the path and range of each request."""

    def log_message(self, *_):
        pass

    def page(self, text):
        self.send_response(200)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Set-Cookie', 'download_warning=1')
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self, content, most=None, ranges=True):
        asked = self.headers.get('Range')
        begin = int(asked.removeprefix('bytes=').removesuffix('-')) if asked and ranges else 0
        if begin >= len(content) > 0:
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : None if most is None else begin + most])
        return None

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get('Range')))
        self.server.behaviour(self)


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Host) as host:
        host.asked, host.behaviour = [], lambda handler: handler.file(CONTENT)
        host.url = f'http://127.0.0.1:{host.server_port}'
        thread = threading.Thread(target=host.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(authors, 'DRIVE', f'{host.url}/uc?export=download&id=')
        monkeypatch.setattr(authors, '_gdown', lambda: None)
        yield host
        host.shutdown()
        thread.join()


def refused(tmp_path, **kwargs):
    with pytest.raises(UserError) as e:
        download(MODEL, tmp_path, **kwargs)
    assert MODEL.name in str(e.value)
    assert not (tmp_path / 'tiny_in1k.original').exists()
    return str(e.value)


def test_thirteen_models():
    assert len(MODELS) == len({m.file_id for m in MODELS.values()}) == 13
    assert find_model('authors://ccd_r50_in1k') is MODELS['ccd_r50_in1k']
    assert MODELS['ccd_r50_in1k'].score == 77.3137
    with pytest.raises(UserError, match='ccd_r50_in1k') as e:
        find_model('ccd_r50_in2k')
    assert "'ccd_r50_in2k'" in str(e.value)


def test_a_plain_answer(server, tmp_path):
    path = download(MODEL, tmp_path)
    assert path == tmp_path / 'tiny_in1k.original'
    assert path.read_bytes() == CONTENT
    assert server.asked == [('/uc?export=download&id=FILE-ID', None)]
    assert json.loads((tmp_path / RECORD).read_text()) == {'tiny_in1k': hashlib.sha256(CONTENT).hexdigest()}


def test_mirror(server, tmp_path):
    assert download(MODEL, tmp_path, mirror=f'{server.url}/weights/').read_bytes() == CONTENT
    assert server.asked == [('/weights/FILE-ID', None)]


def test_a_page_asks_for_a_confirmation(server, tmp_path):
    def behaviour(handler):
        query = parse_qs(urlsplit(handler.path).query)
        confirmed = (
            handler.path.startswith('/download?') and query.get('confirm') == ['t&1'] and query['uuid'] == ['8c']
        )
        return (
            handler.file(CONTENT)
            if confirmed and 'download_warning' in handler.headers['Cookie']
            else (handler.page(CONFIRM))
        )

    server.behaviour = behaviour
    assert download(MODEL, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_older_page_with_a_link(server, tmp_path):
    server.behaviour = lambda handler: (
        handler.file(CONTENT)
        if 'confirm=AbC' in handler.path
        else handler.page(
            '<html><a href="/uc?export=download&amp;confirm=AbC&amp;id=FILE-ID">Download anyway</a></html>'
        )
    )
    assert download(MODEL, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(('page', 'words'), [(QUOTA, ['quota', 'tomorrow']), (SIGN_IN, ['Sign in - Accounts'])])
def test_pages_instead_of_the_file(server, tmp_path, page, words):
    server.behaviour = lambda handler: handler.page(page)
    message = refused(tmp_path)
    assert all(word in message for word in words)
    assert 'https://drive.google.com/file/d/FILE-ID/view' in message
    assert f'--original {tmp_path / "tiny_in1k.original"}' in message
    assert not list(tmp_path.glob('*.download'))


def test_a_confirmation_that_leads_to_itself(server, tmp_path):
    server.behaviour = lambda handler: handler.page(CONFIRM)
    assert 'Virus scan warning' in refused(tmp_path)
    assert len(server.asked) == 2


def test_html_that_calls_itself_a_file(server, tmp_path):
    server.behaviour = lambda handler: handler.file(QUOTA.encode())
    assert 'quota' in refused(tmp_path)


def test_cuts_are_continued(server, tmp_path):
    server.behaviour = lambda handler: handler.file(CONTENT, most=2_000_000)
    assert download(MODEL, tmp_path).read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, 'bytes=2000000-', 'bytes=4000000-']


def test_cuts_without_end(server, tmp_path):
    server.behaviour = lambda handler: handler.file(CONTENT, most=100_000)
    message = refused(tmp_path)
    assert '500,000 bytes' in message and 'continues' in message
    server.behaviour = lambda handler: handler.file(CONTENT)
    assert download(MODEL, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][1] == 'bytes=500000-'


def test_a_host_without_ranges(server, tmp_path):
    (tmp_path / 'tiny_in1k.original.download').write_bytes(b'other')
    server.behaviour = lambda handler: handler.file(CONTENT, ranges=False)
    assert download(MODEL, tmp_path).read_bytes() == CONTENT


def test_what_is_there_is_longer_than_the_file(server, tmp_path):
    (tmp_path / 'tiny_in1k.original.download').write_bytes(CONTENT + b'more')
    assert download(MODEL, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize('code', [403, 404, 500])
def test_errors_of_the_host(server, tmp_path, code):
    server.behaviour = lambda handler: handler.send_error(code)
    assert f'answers {code}' in refused(tmp_path)


def test_no_host(tmp_path, monkeypatch):
    assert 'cannot be downloaded' in refused(tmp_path, mirror='http://127.0.0.1:9')


def test_an_empty_file(server, tmp_path):
    server.behaviour = lambda handler: handler.file(b'')
    assert 'empty' in refused(tmp_path)


def test_another_file_than_the_first_time(server, tmp_path):
    download(MODEL, tmp_path).unlink()
    server.behaviour = lambda handler: handler.file(CONTENT + b'1')
    message = refused(tmp_path)
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert hashlib.sha256(CONTENT + b'1').hexdigest() in message
    assert str(tmp_path / RECORD) in message
    (tmp_path / RECORD).write_text('{')
    assert 'damaged' in refused(tmp_path)


def test_a_full_disk(server, tmp_path, monkeypatch):
    def full(head, answer, file, *_):
        file.write(head)
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(authors, '_copy', full)
        message = refused(tmp_path)
    assert str(tmp_path) in message and 'full' in message
    assert download(MODEL, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][1] == 'bytes=512-'


def test_gdown(tmp_path, monkeypatch):
    """Where it is installed, it downloads; what it says is passed on."""
    calls = []

    def fetch(id, output, quiet, resume):
        calls.append((id, resume))
        with open(output, 'wb') as f:
            f.write(CONTENT)
        return output

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=fetch))
    assert download(MODEL, tmp_path).read_bytes() == CONTENT
    assert calls == [('FILE-ID', True)]

    def fail(**_):
        raise RuntimeError('Cannot retrieve the public link of the file.\nYou may need to change the permission')

    (tmp_path / 'tiny_in1k.original').unlink()
    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=fail))
    message = refused(tmp_path)
    assert 'Cannot retrieve the public link' in message and '--original' in message

    def page(output, **_):
        with open(output, 'w') as f:
            f.write(QUOTA)
        return output

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=page))
    assert 'quota' in refused(tmp_path)
