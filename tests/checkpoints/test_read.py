"""The one reader: how often it opens a file, what it leaves behind, and what it refuses."""

from __future__ import annotations

import builtins
import http.server
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmccd.checkpoints import read
from mmccd.checkpoints.files import write_with_checksum
from mmccd.checkpoints.handover import OpenedCheckpoint
from mmccd.checkpoints.read import CheckpointFile, read_checkpoint
from mmccd.errors import UserError


class Trap:
    """Unpickled, it makes a file called ``sprung``."""

    def __reduce__(self):
        return os.system, ('touch sprung',)


@pytest.fixture
def path(tmp_path) -> str:
    """A checkpoint as mmengine's runner writes it, histories included, with its checksum."""
    path = tmp_path / 'x.pth'
    state = {'weight': torch.arange(6.0).reshape(2, 3), 'bias': torch.arange(2.0)}
    hub = dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])})
    optimizer = dict(momentum=torch.arange(3.0))
    torch.save(dict(meta=dict(epoch=1), state_dict=state, message_hub=hub, optimizer=optimizer), path)
    write_with_checksum(str(path), path.read_bytes())
    return str(path)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Paths of the files that are opened from now on."""
    paths: list[str] = []
    original = builtins.open

    def counting(file, *args, **kwargs):
        paths.append(str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', counting)
    return paths


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('files_by_number', [True, False])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before PyTorch 1.6'])
def test_content(path, opened, monkeypatch, mmap, files_by_number, zipped):
    """Mapped or copied, on systems that name open files and others, in both formats: opened once, and closed."""
    if not zipped:
        torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
        write_with_checksum(path, Path(path).read_bytes())
    if not files_by_number:
        monkeypatch.setattr(read, '_OPEN_FILES', '/nowhere')
    opened.clear()
    before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
    content = read_checkpoint(path, mmap=mmap)
    assert opened.count(path) == 1
    assert (len(os.listdir('/proc/self/fd')) if before else 0) == before
    assert content['state_dict']['weight'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert content['message_hub']['log_scalars']['train/loss'].current() == 1.0


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='files are mapped where open ones have names')
def test_mapped_tensors_are_the_files(path):
    """That is what saves the memory; a copy is what survives a change of the file."""
    mapped, copied = read_checkpoint(path, mmap=True), read_checkpoint(path)
    content = bytearray(Path(path).read_bytes())
    at = content.index(torch.arange(6.0).numpy().tobytes())
    with open(path, 'r+b') as f:
        f.seek(at)
        f.write(torch.full((6,), 7.0).numpy().tobytes())
    assert mapped['state_dict']['weight'].unique().tolist() == [7]
    assert copied['state_dict']['weight'].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_what_was_verified_is_loaded(path, tmp_path):
    """A file that takes its place between the comparison and the loading is not read."""
    with CheckpointFile(path) as file:
        file.verify()
        torch.save(dict(state_dict=Trap()), tmp_path / 'other.pth')
        os.replace(tmp_path / 'other.pth', path)
        assert file.load(mmap=True)['state_dict']['bias'].tolist() == [0, 1]


def test_differing_checksum(path):
    with open(path, 'ab') as f:
        f.write(b'x')
    with pytest.raises(ValueError, match=r'x\.pth is not what was written: it differs from \.x\.pth\.sha256'):
        read_checkpoint(path)


@pytest.mark.parametrize('source', ['gone.pth', '.'])
def test_no_file(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=source):
        read_checkpoint(source)


@pytest.mark.parametrize('named', ['file', 'mmengine'])
def test_environment_is_as_before(path, tmp_path, monkeypatch, named):
    """A scheme of mmengine's own is read without running code either; and then everything is as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(state_dict={}, meta=Trap()), 'trap.pth')
    CheckpointLoader.register_scheme(
        'mine://', lambda name, map_location: torch.load(name[len('mine://') :], weights_only=False), force=True
    )
    start = Path('trap.pth').absolute().as_uri() if named == 'file' else 'mine://trap.pth'
    with pytest.raises(ValueError, match=r'trap\.pth (is not a checkpoint of|cannot be loaded)'):
        read_checkpoint(start)
    assert not Path('sprung').exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_urls(path, tmp_path, monkeypatch):
    """A file's is the file, as it is now: with its checksum, and nothing is copied."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    assert read_checkpoint(Path(path).as_uri())['meta'] == dict(epoch=1)
    torch.save(dict(meta=dict(epoch=2)), path)
    with pytest.raises(ValueError, match=r'^file:.*x\.pth is not what was written'):
        read_checkpoint(Path(path).as_uri())
    Path(path).with_name('.x.pth.sha256').unlink()
    assert read_checkpoint(Path(path).as_uri())['meta'] == dict(epoch=2)
    assert not (tmp_path / 'home').exists()
    with pytest.raises(ValueError, match=r"torchvision://resnet51 cannot be loaded as a checkpoint: 'resnet51'$"):
        read_checkpoint('torchvision://resnet51')


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> list[str]:
    """Addresses that are downloaded, each to a checkpoint that has its own as ``meta``."""
    fetched: list[str] = []

    def download(url: str, target: str, **options: object) -> None:
        fetched.append(url)
        torch.save(dict(meta=url), target)

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr('torch.hub.download_url_to_file', download)
    return fetched


def test_files_of_one_name_at_several_addresses(downloads, tmp_path):
    """``pytorch_model.bin`` is what most of them are called: none is taken for another's."""
    one, other = (f'https://a.org/{owner}/model.bin' for owner in ('one', 'other'))
    for url in (one, other, f'{one}?download=true', one):
        assert read_checkpoint(url) == dict(meta=url)
    assert downloads == [one, other, f'{one}?download=true']
    # A name with a hash says which content it is: PyTorch's own place, and only once.
    hashed = 'resnet18-f37072fd.pth'
    for mirror in ('https://a.org', 'https://b.org'):
        assert read_checkpoint(f'{mirror}/{hashed}') == dict(meta=f'https://a.org/{hashed}')
    assert (tmp_path / 'home' / 'hub' / 'checkpoints' / hashed).is_file()


def test_mmengine_loads_what_was_checked(downloads, monkeypatch):
    """Its own loader would look for the name alone, in the same folder."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    read.use_own_downloads()
    for url in ('https://a.org/model.bin', 'http://b.org/model.bin'):
        assert read_checkpoint(url) == CheckpointLoader.load_checkpoint(url, map_location='cpu') == dict(meta=url)
    assert len(downloads) == 2


def test_a_page_in_the_place_of_a_download(tmp_path, monkeypatch):
    """It stays in the folder: the message names it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(
        'torch.hub.download_url_to_file', lambda url, target, **_: Path(target).write_text('<html>sign in</html>')
    )
    with pytest.raises(
        ValueError, match=r'a web page, not the file: .*\nRemove .*/x-\w{16}\.pth to download it again$'
    ):
        read_checkpoint('https://a.org/x.pth')


def test_histories_alone_are_called(tmp_path):
    """``getattr`` is allowed for the statistics of histories, nothing else."""

    class Get:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(x=Get()), tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='is not a checkpoint of tensors and plain data'):
        read_checkpoint(tmp_path / 'x.pth')


# Handed over to mmengine


def test_handed_over_once(path, opened):
    """mmengine's next loading of this name takes what was read, and the one after it reads; nothing is kept."""
    checkpoint = OpenedCheckpoint.read(path, 'checkpoint')
    opened.clear()
    checkpoint.hand_over()
    assert opened == []
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    assert opened == []
    assert content['state_dict']['bias'].tolist() == [0, 1]
    again = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    assert opened.count(path) == 1
    assert again is not content
    assert again['meta'] == content['meta']
    checkpoint.hand_over()  # has nothing any more
    assert CheckpointLoader.load_checkpoint(path) is not content


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='the system does not list what is mapped')
def test_the_file_is_not_mapped_for_longer(path):
    """Whatever keeps a part of what was handed over; the model's tensors alone are not copied here."""
    OpenedCheckpoint.read(path, 'checkpoint').hand_over()
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    assert path in Path('/proc/self/maps').read_text()
    kept = {k: v for k, v in content.items() if k != 'state_dict'}
    del content
    assert path not in Path('/proc/self/maps').read_text()
    assert set(kept) == {'meta', 'message_hub', 'optimizer'}
    assert kept['optimizer']['momentum'].tolist() == [0, 1, 2]


def test_other_names_are_read_as_ever(path, tmp_path):
    """Those that begin alike, too."""
    other = f'{path}.other'
    torch.save(dict(state_dict={}), other)
    OpenedCheckpoint.read(path, 'checkpoint').hand_over()
    assert CheckpointLoader.load_checkpoint(other) == dict(state_dict={})
    assert set(CheckpointLoader.load_checkpoint(path)) == {'meta', 'state_dict', 'message_hub', 'optimizer'}


def test_check_before(path):
    checkpoint = OpenedCheckpoint.read(path, 'checkpoint')
    checkpoint.check_fits(torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match=r'x\.pth does not fit(?s:.*)size mismatch of 2 tensors: weight \(2, 3\) in'):
        checkpoint.check_fits(torch.nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"--resume 'gone\.pth' does not exist"):
        OpenedCheckpoint.read('gone.pth', '--resume')


ONE_OF_SEVERAL = """
import sys, time
import torch
from mmccd.checkpoints.handover import OpenedCheckpoint
from mmccd.errors import UserError

url, width = sys.argv[1], int(sys.argv[2])
print('ready', flush=True)
sys.stdin.readline()
try:
    OpenedCheckpoint.read(url, 'checkpoint').check_fits(torch.nn.Linear(width, 2))
    print('fits')
except UserError as e:
    print(e)
"""


@pytest.fixture
def server(path):
    """A server of the folder of ``path`` that takes its time; its requests are in ``requested``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=os.path.dirname(path))

        def do_GET(self):
            server.requested.append(self.path)
            time.sleep(1)  # the other process comes meanwhile
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.requested = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'width', 'expected'),
    [
        ('x', 3, 'fits'),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (('x', 4, 'fit the'), ('gone', 3, '404'))),
    ],
)
def test_one_of_several_processes_downloads(server, root, tmp_path, name, width, expected):
    """The other waits until it has; each checks what it reads, and none waits for one that has failed."""
    url = f'http://127.0.0.1:{server.server_port}/{name}.pth'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', ONE_OF_SEVERAL, url, str(width)],
            cwd=root,
            env={**os.environ, 'TORCH_HOME': str(tmp_path / 'home'), 'LOCAL_RANK': str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert all(expected in output for output in outputs), outputs
    assert len(server.requested) == (2 if name == 'gone' else 1)


def test_a_download_is_checked_as_a_file_is(path, tmp_path, monkeypatch):
    """Whatever starts the process: half a checkpoint is an error."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('LOCAL_RANK', '1')
    checkpoint = OpenedCheckpoint.read(Path(path).as_uri(), 'checkpoint')
    checkpoint.check_fits(torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match=r'x\.pth does not fit'):
        checkpoint.check_fits(torch.nn.Linear(4, 2))
    checkpoint.hand_over()
    assert CheckpointLoader.load_checkpoint(Path(path).as_uri())['meta'] == dict(epoch=1)


def test_what_is_allowed_is_not_locked_while_downloading(path, tmp_path, monkeypatch):
    """Another thread may read a file meanwhile."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    read_meanwhile = []

    def download(url, target, **kwargs):
        thread = threading.Thread(target=lambda: read_meanwhile.append(read_checkpoint(path)), daemon=True)
        thread.start()
        thread.join(30)
        Path(target).write_bytes(Path(path).read_bytes())

    monkeypatch.setattr('torch.hub.download_url_to_file', download)
    assert read_checkpoint('https://a.org/x.pth')['meta'] == dict(epoch=1)
    assert len(read_meanwhile) == 1


def test_the_trap_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Trap()))
    assert Path('sprung').exists()


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (torch.nn.Linear(1, 1), r'it names torch\.nn\.modules\.linear\.Linear, which is code'),
        (dict(meta=Trap()), r'it names (posix|nt)\.system, which is code'),
        (b'weights', r'it is no file of torch\.save'),
    ],
)
def test_reasons_without_the_advice_to_run_code(tmp_path, content, reason):
    """PyTorch's text says how to load such a file all the same."""
    path = tmp_path / 'x.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf'is not loaded: {reason}\nWhere it was made') as e:
        read_checkpoint(path)
    assert 'weights_only' not in str(e.value)


def test_safetensors(tmp_path):
    """Known by their content, under any name; with what is beside the tensors. A damaged one says so."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    state = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.count': torch.tensor(3)}
    for name, metadata in (('x.safetensors', None), ('x.pth', dict(format='pt', architecture='resnet50'))):
        save_file(state, tmp_path / name, metadata)
        for mmap in (False, True):
            found = read_checkpoint(tmp_path / name, mmap=mmap)
            assert list(found['state_dict']) == sorted(state)
            assert all(torch.equal(found['state_dict'][k], v) for k, v in state.items())
            assert found.get('metadata') == (metadata and dict(architecture='resnet50'))
    content = (tmp_path / 'x.pth').read_bytes()
    for damaged in (content[:-4], content[:40], content[:8] + b'{' + bytes(100)):
        (tmp_path / 'x.pth').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'x\.pth cannot be read as a checkpoint \(cut short\?\): '):
            read_checkpoint(tmp_path / 'x.pth')


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    pytest.importorskip('safetensors.torch').save_file({'a': torch.zeros(1)}, tmp_path / 'x.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'x.safetensors')
