"""The replacement for mmcv's compiled operators: when it steps in, what it computes, what it refuses.

What it computes is checked by hand, against mmdet's focal loss, by numerical gradients, and, in
`test_equal_to_compiled`, against the compiled operators where they exist.
"""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmccd.compat import mmcv_ops

STATE = mmcv_ops.install()
FLT_MIN = torch.finfo(torch.float32).tiny


@pytest.fixture(scope='module')
def ext():
    """The replacement, whether or not this installation of mmcv needs it."""
    return mmcv_ops.make_replacement()


def run_python(code, path=(), **env):
    """Run code in a fresh Python, with the package under test loaded from its files as `mmcv_ops`.

    From its files, since `import mmccd` calls install() and imports a good deal more.
    """
    code = textwrap.dedent(f"""
        import importlib.util, sys
        folder = [{os.path.dirname(mmcv_ops.__file__)!r}]
        spec = importlib.util.spec_from_file_location(
            'mmcv_ops', {mmcv_ops.__file__!r}, submodule_search_locations=folder)
        mmcv_ops = sys.modules['mmcv_ops'] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mmcv_ops)
    """) + textwrap.dedent(code)
    inherited = {k: v for k, v in os.environ.items() if k != mmcv_ops.ENV_VAR}
    search = [str(p) for p in path] + [p for p in [os.environ.get('PYTHONPATH')] if p]
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, 'PYTHONPATH': os.pathsep.join(search), **env},
    )


def output_of(*args, **kwargs):
    done = run_python(*args, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fake_mmcv(tmp_path):
    """A folder with an empty package mmcv, to be put first on a fresh Python's path."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    return tmp_path


# ----------------------------------------------------------------------------- when it steps in


def test_installs_without_compiled_operators(fake_mmcv):
    code = """
        print(mmcv_ops.in_use(), mmcv_ops.install(), mmcv_ops.in_use(), mmcv_ops.install())
        print(type(sys.modules['mmcv._ext']).__name__)
    """
    assert output_of(code, [fake_mmcv]) == 'none replacement replacement replacement\n_Replacement'


def test_install_imports_nothing_heavy():
    heavy = output_of("""
        mmcv_ops.install()
        heavy = {'torch', 'torchvision', 'numpy', 'mmcv', 'mmengine'}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert heavy == '[]'


def test_off_leaves_mmcv_alone(fake_mmcv):
    code = "print(mmcv_ops.install({}), mmcv_ops.in_use(), 'mmcv._ext' in sys.modules)"
    by_variable = output_of(code.format(''), [fake_mmcv], MMCCD_MMCV_OPS='off')
    by_argument = output_of(code.format("'off'"), [fake_mmcv])
    assert by_variable == by_argument == 'none none False'


def test_argument_goes_before_variable(fake_mmcv):
    code = "print(mmcv_ops.install('auto'))"
    assert output_of(code, [fake_mmcv], MMCCD_MMCV_OPS='off') == 'replacement'


@pytest.mark.parametrize('value', ['on', '', 'AUTO'])
def test_wrong_variable(monkeypatch, value):
    monkeypatch.setenv('MMCCD_MMCV_OPS', value)
    rule = f"MMCCD_MMCV_OPS must be one of 'auto', 'off', got '{value}'"
    with pytest.raises(ValueError, match=rule):
        mmcv_ops.install()


def test_wrong_mode():
    with pytest.raises(ValueError, match="mode must be one of 'auto', 'off', got 'never'"):
        mmcv_ops.install('never')


def test_no_mmcv(tmp_path):
    # Nothing on the path has a folder mmcv, but for an empty one, which is no mmcv.
    (tmp_path / 'mmcv').mkdir()
    code = """
        import os
        sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'mmcv'))]
        sys.path.append({folder!r})
        sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]
        print(mmcv_ops.install(), 'mmcv._ext' in sys.modules)
    """
    assert output_of(code.format(folder=str(tmp_path))) == 'no-mmcv False'


def test_never_replaces_compiled_operators(fake_mmcv):
    (fake_mmcv / 'mmcv' / '_ext.py').write_text('nms = "mmcv\'s own"\n')
    code = """
        print(mmcv_ops.install(), 'mmcv._ext' in sys.modules)
        import mmcv._ext
        print(mmcv_ops.install(), mmcv._ext.nms, mmcv_ops.in_use())
    """
    assert output_of(code, [fake_mmcv]) == "compiled False\ncompiled mmcv's own compiled"


def test_broken_compiled_operators_show_their_own_error(fake_mmcv):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (fake_mmcv / 'mmcv' / f'_ext{suffix}').write_bytes(b'built for another torch')
    code = """
        print(mmcv_ops.install())
        try:
            import mmcv._ext
        except ImportError as error:
            print('_ext' in str(error))
    """
    assert output_of(code, [fake_mmcv]) == 'compiled\nTrue'


@pytest.mark.long
def test_mmdet_models_import():
    pytest.importorskip('mmdet')
    code = """
        state = mmcv_ops.install()
        import mmdet.models
        from mmcv.utils.env import collect_env
        from mmcv.utils.ext_loader import check_ops_exist
        print(state, check_ops_exist(), collect_env()['MMCV Compiler'])
    """
    state, exist, compiler = output_of(code).splitlines()[-1].split(' ', 2)
    assert state in ('replacement', 'compiled')
    assert exist == 'True'
    if state == 'replacement':
        assert compiler.startswith('none (mmccd replacement over torchvision')


def test_one_line_in_each_log(fake_mmcv):
    pytest.importorskip('mmengine')
    code = """
        import logging
        logging.basicConfig(stream=sys.stdout, format='std %(name)s %(levelname)s: %(message)s',
                            level=logging.INFO)
        mmcv_ops.install(), mmcv_ops.install()
        import torch
        from mmengine.logging import MMLogger
        logger = MMLogger.get_instance('run')
        logger.handlers[0].stream = sys.stdout
        logger.handlers[0].setFormatter(logging.Formatter('run: %(message)s'))
        from mmcv import _ext
        for _ in range(2):
            _ext.nms(torch.rand(3, 4), torch.rand(3), iou_threshold=.5, offset=0)
    """
    lines = [line for line in output_of(code, [fake_mmcv]).splitlines() if 'no compiled' in line]
    assert [line.split(' mmcv ')[0] for line in lines] == ['std mmccd INFO:', 'run:']


# ----------------------------------------------------------------------------- what the module is


def test_module_attributes(ext):
    assert isinstance(ext.__spec__, importlib.machinery.ModuleSpec)
    assert ext.__spec__.name == ext.__name__ == 'mmcv._ext'
    assert ext.__spec__.loader is ext.__loader__ is not None
    assert ext.__package__ == 'mmcv'
    assert ext.__file__ == mmcv_ops.__file__
    assert 'replacement' in ext.__doc__
    with pytest.raises(AttributeError, match='__wrapped__'):
        ext.__wrapped__  # noqa: B018


@pytest.mark.skipif(STATE != 'replacement', reason=f"mmcv's operators in use: {STATE}")
def test_found_by_the_import_system():
    loaded = importlib.import_module('mmcv._ext')
    assert importlib.util.find_spec('mmcv._ext') is loaded.__spec__


def test_supported():
    """What MMDetection's models and configs call; psamask, nms_quadri and others have the clear error."""
    both = ('forward', 'backward')
    pairs = ('roi_align', 'roi_pool', 'deform_roi_pool', 'carafe', 'carafe_naive', 'modulated_deform_conv')
    pairs += ('sigmoid_focal_loss', 'softmax_focal_loss', 'ms_deform_attn')
    assert set(mmcv_ops.SUPPORTED) == {
        *('nms', 'softnms', 'nms_match', 'nms_rotated', 'box_iou_rotated', 'line_nms_forward'),
        *(f'{name}_{way}' for name in pairs for way in both),
        *('deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'),
        *('masked_im2col_forward', 'masked_col2im_forward'),
        *('sync_bn_forward_mean', 'sync_bn_forward_var', 'sync_bn_forward_output'),
        *('sync_bn_backward_param', 'sync_bn_backward_data'),
        *('get_compiler_version', 'get_compiling_cuda_version'),
    }


def test_unknown_operator_tells_what_to_do(ext, monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'version', {'onedl-mmcv': '2.3.6'}.__getitem__)
    assert hasattr(ext, 'psamask_forward')  # as mmcv's load_ext asks at import
    with pytest.raises(RuntimeError) as error:
        ext.psamask_forward(torch.rand(1), psa_type=0)
    text = str(error.value)
    assert "mmcv operator 'psamask_forward' is not available" in text
    assert 'onedl-mmcv 2.3.6 was installed without its compiled operators' in text
    assert text.endswith(
        'pip install "setuptools>=80,<82" wheel packaging\n'
        'pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall '
        '--no-binary onedl-mmcv "onedl-mmcv==2.3.6"'
    )


@pytest.mark.parametrize(
    ('installed', 'command'),
    [
        (
            {'mmcv': '2.1.0'},
            'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps '
            '--force-reinstall --no-binary mmcv "mmcv==2.1.0"',
        ),
        (
            {'mmcv-lite': '2.1.0'},
            'pip uninstall -y mmcv-lite && MMCV_WITH_OPS=1 pip install --no-build-isolation '
            '--no-cache-dir --no-deps --force-reinstall --no-binary mmcv "mmcv==2.1.0"',
        ),
        (
            {},
            'pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall '
            '--no-binary onedl-mmcv "onedl-mmcv"',
        ),
    ],
)
def test_build_command_by_distribution(monkeypatch, installed, command):

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    assert mmcv_ops.build_commands().splitlines()[-1] == command


# ----------------------------------------------------------------------------- nms

# D is A moved right by 1, B the upper half of A, C apart:   IoU(D, A) = 90 / 110 = 0.818
#                                                            IoU(D, B) = 45 / 105 = 0.429
BOXES = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # A             IoU(A, B) = 50 / 100 = 0.5
        [0.0, 0.0, 10.0, 5.0],  # B
        [20.0, 20.0, 30.0, 30.0],  # C
        [1.0, 0.0, 11.0, 10.0],
    ]
)  # D
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.95])


@pytest.mark.parametrize(
    ('threshold', 'kept'),
    [
        (0.9, [3, 0, 1, 2]),
        (0.6, [3, 1, 2]),  # D removes A, so that A cannot remove B
        (0.45, [3, 1, 2]),
        (0.4, [3, 2]),
    ],
)
def test_nms(ext, threshold, kept):
    indices = ext.nms(BOXES, SCORES, iou_threshold=threshold, offset=0)
    assert indices.dtype == torch.int64
    assert indices.tolist() == kept


def test_nms_overlap_equal_to_threshold_is_kept(ext):
    # IoU 30 / 100 is exactly 0.3f, which is more than the double 0.3.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0]])
    assert ext.nms(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.3, offset=0).tolist() == [0, 1]


def test_nms_scores_of_another_dtype(ext):
    assert ext.nms(BOXES, SCORES.half(), iou_threshold=0.6, offset=0).tolist() == [3, 1, 2]
    assert ext.nms(BOXES.half(), SCORES, iou_threshold=0.6, offset=0).tolist() == [3, 1, 2]


def test_nms_without_boxes(ext):
    assert ext.nms(BOXES[:0], SCORES[:0], iou_threshold=0.6, offset=0).tolist() == []


def test_nms_offset_is_refused(ext):
    with pytest.raises(RuntimeError, match=r"mmcv operator 'nms' with offset=1 is not available"):
        ext.nms(BOXES, SCORES, iou_threshold=0.6, offset=1)


def test_mmcv_batched_nms():
    mmcv = pytest.importorskip('mmcv.ops')
    # Of two classes: A and D no longer meet.
    dets, kept = mmcv.batched_nms(BOXES, SCORES, torch.tensor([0, 0, 0, 1]), dict(type='nms', iou_threshold=0.45))
    assert kept.tolist() == [3, 0, 2]
    torch.testing.assert_close(dets, torch.cat([BOXES, SCORES[:, None]], 1)[kept])


# ----------------------------------------------------------------------------- roi_align


def roi_align(ext, image, rois, size, scale=1.0, ratio=0, aligned=True, pool_mode=1):
    """What mmcv's RoIAlignFunction.forward does with the operator."""
    output = image.new_full((rois.size(0), image.size(1), *size), math.nan)  # all to be written
    ext.roi_align_forward(
        image,
        rois,
        output,
        image.new_zeros(0),
        image.new_zeros(0),
        aligned_height=size[0],
        aligned_width=size[1],
        spatial_scale=scale,
        sampling_ratio=ratio,
        pool_mode=pool_mode,
        aligned=aligned,
    )
    return output


def roi_align_grad(ext, grad, rois, shape, scale=1.0, ratio=0, aligned=True, pool_mode=1):
    """What its backward does."""
    grad_input = grad.new_zeros(shape)
    ext.roi_align_backward(
        grad,
        rois,
        grad.new_zeros(0),
        grad.new_zeros(0),
        grad_input,
        aligned_height=grad.size(2),
        aligned_width=grad.size(3),
        spatial_scale=scale,
        sampling_ratio=ratio,
        pool_mode=pool_mode,
        aligned=aligned,
    )
    return grad_input


def ramps(height=8, width=8):
    """(1, 3, H, W): a constant 7, a ramp x, and a ramp 10 y."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing='ij')
    return torch.stack([torch.full_like(x, 7.0), x, 10 * y])[None]


@pytest.mark.parametrize('ratio', [0, 1, 2, 3])  # any samples of a ramp have its middle as mean
@pytest.mark.parametrize(('scale', 'box'), [(1.0, [1.0, 2.0, 5.0, 6.0]), (0.5, [2.0, 4.0, 10.0, 12.0])])
@pytest.mark.parametrize(('aligned', 'shift'), [(True, 0.5), (False, 0.0)])
def test_roi_align_of_ramps(ext, ratio, scale, box, aligned, shift):
    # The box, x 1..5 and y 2..6, in 2 x 2 bins: middles at x = 2, 4 and y = 3, 5. Aligned, the
    # centre of pixel i is at i + 0.5.
    output = roi_align(ext, ramps(), torch.tensor([[0.0, *box]]), (2, 2), scale, ratio, aligned)
    x = torch.tensor([[2.0, 4.0], [2.0, 4.0]]) - shift
    y = torch.tensor([[3.0, 3.0], [5.0, 5.0]]) - shift
    torch.testing.assert_close(output[0], torch.stack([torch.full((2, 2), 7.0), x, 10 * y]))


def test_roi_align_takes_the_image_of_the_index(ext):
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4)  # image i is all i
    rois = torch.tensor([[2.0, 0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 0.0, 3.0, 3.0], [2.0, 1.0, 1.0, 2.0, 2.0]])
    assert roi_align(ext, images, rois, (1, 1)).flatten().tolist() == [2, 0, 2]


def test_roi_align_without_boxes(ext):
    assert roi_align(ext, ramps(), torch.zeros(0, 5), (2, 3)).shape == (0, 3, 2, 3)
    grad = roi_align_grad(ext, torch.zeros(0, 3, 2, 3), torch.zeros(0, 5), (1, 3, 8, 8))
    assert grad.shape == (1, 3, 8, 8) and not grad.any()


def test_roi_align_backward(ext):
    # One sample in the middle of the box. First box: (2, 2), on a pixel, which gets all of the
    # gradient 8; second: (1.5, 2.5), between four pixels, which get a quarter of 4 each.
    rois = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0], [0.0, 1.0, 2.0, 2.0, 3.0]])
    grad = roi_align_grad(ext, torch.tensor([8.0, 4.0]).view(2, 1, 1, 1), rois, (1, 1, 5, 5), ratio=1, aligned=False)
    expected = torch.zeros(5, 5)
    expected[2, 2] = 8
    expected[2:4, 1:3] += 1
    torch.testing.assert_close(grad[0, 0], expected)


def test_roi_align_in_bfloat16(ext):
    """torchvision's kernels have none of it: neither on the CPU nor on a GPU."""
    torch.manual_seed(0)
    rois = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 1.0, 4.0, 3.0]])
    image, grad = torch.randn(1, 3, 5, 5).bfloat16(), torch.randn(2, 3, 2, 2).bfloat16()
    for got, expected in (
        (roi_align(ext, image, rois.bfloat16(), (2, 2)), roi_align(ext, image.float(), rois, (2, 2))),
        (
            roi_align_grad(ext, grad, rois.bfloat16(), image.shape),
            roi_align_grad(ext, grad.float(), rois, image.shape),
        ),
    ):
        assert got.dtype == torch.bfloat16 and expected.abs().max() > 0.1
        assert torch.equal(got, expected.bfloat16())


def test_roi_align_trains_in_bfloat16():
    mmcv = pytest.importorskip('mmcv.ops')
    if mmcv_ops.in_use() != 'replacement':
        pytest.skip('mmcv has compiled operators')
    image = torch.randn(1, 3, 5, 5, requires_grad=True)
    rois = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]])
    with torch.autocast('cpu', torch.bfloat16):
        features = torch.nn.functional.conv2d(image, torch.ones(3, 3, 1, 1))
        assert features.dtype == torch.bfloat16
        y = mmcv.roi_align(features, rois.to(features.dtype), (2, 2), 1.0, 0, 'avg', True)
    y.float().sum().backward()
    assert image.grad.isfinite().all() and image.grad.any()


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradcheck(aligned, ratio):
    mmcv = pytest.importorskip('mmcv.ops')
    torch.manual_seed(0)
    image = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[0, 0.4, 0.7, 5.2, 4.1], [1, 1.3, 0.0, 9.9, 7.2], [1, 2.0, 2.0, 2.4, 3.0]], dtype=torch.float64
    )
    assert torch.autograd.gradcheck(lambda t: mmcv.roi_align(t, rois, (2, 3), 0.8, ratio, 'avg', aligned), image)


def test_roi_align_max_is_refused(ext):
    rois = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]])
    refusal = r"'roi_align_{}ward' with pool_mode=0 \(max\) is not available"
    with pytest.raises(RuntimeError, match=refusal.format('for')):
        roi_align(ext, ramps(), rois, (2, 2), pool_mode=0)
    with pytest.raises(RuntimeError, match=refusal.format('back')):
        roi_align_grad(ext, torch.ones(1, 3, 2, 2), rois, (1, 3, 8, 8), pool_mode=0)


# ----------------------------------------------------------------------------- focal loss


def focal_loss(ext, logits, target, weight=None, gamma=2.0, alpha=0.25):
    """Loss and derivative, of each element, as mmcv's SigmoidFocalLossFunction gets them."""
    weight = logits.new_empty(0) if weight is None else weight
    loss, grad = torch.full_like(logits, math.nan), torch.full_like(logits, math.nan)
    ext.sigmoid_focal_loss_forward(logits, target, weight, loss, gamma=gamma, alpha=alpha)
    ext.sigmoid_focal_loss_backward(logits, target, weight, grad, gamma=gamma, alpha=alpha)
    return loss, grad


def test_focal_loss_by_hand(ext):
    # p = 1/2, gamma = 2: loss = w / 4 ln 2, derivative = -+ w / 4 (1/2 + ln 2), where w is 1/4 with
    # minus for the target's class, and 3/4 with plus for others. Label 2 is the background.
    loss, grad = focal_loss(ext, torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    w = torch.tensor([[0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    sign = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(loss, w / 4 * math.log(2))
    torch.testing.assert_close(grad, sign * w / 4 * (0.5 + math.log(2)))


def test_focal_loss_of_extreme_logits_is_clamped(ext):
    # Wrong for certain: the probability of what is true, 0, counts as FLT_MIN. Right: nothing.
    loss, grad = focal_loss(ext, torch.tensor([[-200.0, 200.0], [200.0, -200.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(loss, -math.log(FLT_MIN) * torch.tensor([[0.25, 0.75], [0.0, 0.0]]))
    torch.testing.assert_close(grad, torch.tensor([[-0.25, 0.75], [0.0, 0.0]]))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_focal_loss_equals_mmdet(ext, weighted, gamma, alpha, dtype):
    losses = pytest.importorskip('mmdet.models.losses.focal_loss')
    torch.manual_seed(0)
    logits = (3 * torch.randn(50, 7, dtype=dtype)).requires_grad_()
    target = torch.randint(7 if weighted else 8, (50,))  # 7 is the background
    weight = torch.rand(7, dtype=dtype) if weighted else None
    one_hot = torch.nn.functional.one_hot(target, 8)[:, :7]
    expected = losses.py_sigmoid_focal_loss(
        logits, one_hot, weight=weight[target] if weighted else None, gamma=gamma, alpha=alpha, reduction='none'
    )
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)

    loss, grad = focal_loss(ext, logits, target, weight, gamma, alpha)
    assert not loss.requires_grad
    # mmcv's formula has log(1 - p), which costs float32 digits where p is near 1; mmdet's has not.
    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else {}
    torch.testing.assert_close(loss, expected, **tolerance)
    torch.testing.assert_close(grad, expected_grad, **tolerance)


def test_focal_loss_in_parts(ext, monkeypatch):
    torch.manual_seed(0)
    logits, target, weight = torch.randn(11, 3), torch.randint(3, (11,)), torch.rand(3)
    whole = focal_loss(ext, logits, target, weight)
    monkeypatch.setattr(mmcv_ops.focal_loss, 'CHUNK', 13)  # 4 rows at a time, then 3
    parts = focal_loss(ext, logits, target, weight)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_half_precision(ext, dtype):
    torch.manual_seed(0)
    logits, target = 5 * torch.randn(20, 3).to(dtype), torch.randint(4, (20,))
    exact = focal_loss(ext, logits.float(), target)
    for got, expected in zip(focal_loss(ext, logits, target), exact):
        assert torch.equal(got, expected.to(dtype))


def test_focal_loss_of_nothing(ext):
    loss, grad = focal_loss(ext, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert loss.shape == grad.shape == (0, 3)


def test_focal_loss_bad_targets(ext):
    with pytest.raises(ValueError, match='target must be at most the number of classes, 2, got 3'):
        focal_loss(ext, torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(ValueError, match=r'target must be in 0\.\.1 where a weight is given.*got 2'):
        focal_loss(ext, torch.zeros(1, 2), torch.tensor([2]), torch.ones(2))


def test_focal_loss_does_not_wait_for_a_gpu():
    """On tensors that are CUDA's in name: nothing asks for a number of the device."""
    asked = []

    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Asked():
        logits, target = torch.empty(40, 3, device='cuda'), torch.empty(40, dtype=torch.long, device='cuda')
        for weight in (torch.empty(0, device='cuda'), torch.empty(3, device='cuda')):
            mmcv_ops.focal_loss.sigmoid_focal_loss_forward(logits, target, weight, torch.empty_like(logits), 2.0, 0.25)
    assert 'aten::_assert_async' in asked and 'aten::_local_scalar_dense' not in asked


# ----------------------------------------------------------------------------- the compiled ones


def random_boxes(count, size, device):
    corner = size * torch.rand(count, 2)
    return torch.cat([corner, corner + size / 2 * torch.rand(count, 2)], 1).to(device)


def case_nms(ext, device):
    boxes, scores = random_boxes(1000, 100.0, device), torch.rand(1000).to(device)
    return [ext.nms(boxes, scores, iou_threshold=t, offset=0) for t in (0.1, 0.3, 0.5, 0.7)]


def case_roi_align(ext, device, aligned, ratio):
    image = torch.randn(2, 16, 40, 50).to(device)
    index = torch.randint(2, (64, 1)).to(device)
    rois = torch.cat([index, random_boxes(64, 300.0, device)], 1)  # some reach beyond the image
    output = roi_align(ext, image, rois, (7, 5), 1 / 8, ratio, aligned)
    grad = torch.randn(output.shape).to(device)
    return [output, roi_align_grad(ext, grad, rois, image.shape, 1 / 8, ratio, aligned)]


def case_focal_loss(ext, device, weighted):
    logits = (5 * torch.randn(500, 80)).to(device)
    target = torch.randint(80 if weighted else 81, (500,)).to(device)
    weight = torch.rand(80).to(device) if weighted else None
    return [
        *focal_loss(ext, logits, target, weight),
        *focal_loss(ext, logits.double(), target, None if weight is None else weight.double()),
    ]


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize(
    ('case', 'options'),
    [
        (case_nms, {}),
        *[(case_roi_align, dict(aligned=a, ratio=r)) for a in (True, False) for r in (0, 2)],
        *[(case_focal_loss, dict(weighted=w)) for w in (False, True)],
    ],
)
def test_equal_to_compiled(ext, case, options, device):
    if STATE != 'compiled':
        pytest.skip(f'mmcv has no compiled operators here to compare with (in use: {STATE})')
    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    compiled = importlib.import_module('mmcv._ext')
    if device == 'cuda' and compiled.get_compiling_cuda_version() == 'not available':
        pytest.skip("mmcv's operators were compiled without CUDA")
    if device == 'cpu' and case is case_focal_loss:
        pytest.skip("mmcv's focal loss has no CPU version")
    results = []
    for operators in (ext, compiled):
        torch.manual_seed(0)
        results.append(case(operators, device, **options))
    for got, expected in zip(*results):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
