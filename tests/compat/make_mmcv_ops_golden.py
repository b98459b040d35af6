"""Numbers of mmcv's own operators, for the tests of their replacement.

Compiles what is needed of mmcv's source, about two minutes on one core, runs ``mmcv_ops_cases.py`` on it, and writes
``tests/data/mmcv_ops/*.npz``. The CPU operators are mmcv's as they are. Of operators that mmcv has for GPUs alone, the
CUDA kernels are compiled for the CPU and run with one thread, which changes the order of their sums and nothing else.

    pip download --no-deps --no-binary :all: onedl-mmcv==2.3.6 && tar xf onedl_mmcv-2.3.6.tar.gz
    python tests/compat/make_mmcv_ops_golden.py onedl_mmcv-2.3.6
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.cpp_extension import load

HERE = Path(__file__).parent
DATA = HERE.parent / 'data' / 'mmcv_ops'

CPU = {
    'deform_conv': ['deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'],
    'modulated_deform_conv': ['modulated_deform_conv_forward', 'modulated_deform_conv_backward'],
    'nms': ['nms', 'softnms', 'nms_match'],
    'nms_rotated': ['nms_rotated'],
    'box_iou_rotated': ['box_iou_rotated'],
    'roi_align': ['roi_align_forward', 'roi_align_backward'],
}
KERNELS = [
    *[
        f'{name}_{way}'
        for name in ('carafe', 'carafe_naive', 'roi_pool', 'roi_align')
        for way in ('forward', 'backward')
    ],
    *[f'{name}_{way}' for name in ('deform_roi_pool', 'ms_deform_attn') for way in ('forward', 'backward')],
    *[f'{kind}_focal_loss_{way}' for kind in ('sigmoid', 'softmax') for way in ('forward', 'backward')],
    *[f'sync_bn_forward_{name}' for name in ('mean', 'var', 'output')],
    *[f'sync_bn_backward_{name}' for name in ('param', 'data')],
    *['masked_im2col_forward', 'masked_col2im_forward'],
]

# What a CUDA kernel needs to be a function for one thread on the CPU.
SHIM = """
#pragma once
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <torch/extension.h>
using phalf = at::Half;
struct OneThread { unsigned x, y, z; };
static OneThread threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __syncthreads()
#define __syncwarp()
#define __shfl_down_sync(mask, value, offset) (value)
template <typename T> inline T min(T a, T b) { return a < b ? a : b; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
template <typename T, typename U> inline void atomicAdd(T* at, U value) { *at += value; }
"""

WRAPPERS = """
namespace wrap {
using torch::Tensor;
template <typename T> T* data(const Tensor& t) { return t.numel() ? t.data_ptr<T>() : nullptr; }
#define DISPATCH(t, ...) AT_DISPATCH_FLOATING_TYPES(t.scalar_type(), "kernel", [&] { __VA_ARGS__ });
#define IMAGE(t) (int)t.size(1), (int)t.size(2), (int)t.size(3)

void carafe_naive_forward(Tensor x, Tensor masks, Tensor y, int k, int g, int s) {
  DISPATCH(x, dev_naive::carafe_naive_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(x),
      data<scalar_t>(masks), data<scalar_t>(y), k, g, s, IMAGE(y));)
}
void carafe_naive_backward(Tensor grad, Tensor x, Tensor masks, Tensor gx, Tensor gm, int k, int g, int s) {
  DISPATCH(x, dev_naive::carafe_naive_backward_cuda_kernel<scalar_t>(grad.numel(), data<scalar_t>(grad),
      data<scalar_t>(x), data<scalar_t>(masks), data<scalar_t>(gx), data<scalar_t>(gm), k, g, s, IMAGE(grad));)
}
Tensor last(Tensor t) { return t.permute({0, 2, 3, 1}).contiguous(); }
Tensor first(Tensor t) { return t.permute({0, 3, 1, 2}); }
template <typename F> void each_block(int64_t blocks, F run) {
  for (int64_t i = 0; i < blocks; i++) { blockIdx.x = i; run(); }
  blockIdx.x = 0;
}
void carafe_forward(Tensor x, Tensor masks, Tensor rx, Tensor ry, Tensor rm, Tensor y, int k, int g, int s) {
  rx.copy_(x);
  auto a = last(x), m = last(masks), b = last(y);
  const int64_t n = y.size(0) * y.size(2) * y.size(3);
  DISPATCH(x, each_block(n, [&] { dev::CARAFEForward<scalar_t>(n, data<scalar_t>(a), data<scalar_t>(m), k, g, s,
      IMAGE(x), y.size(2), y.size(3), masks.size(1), data<scalar_t>(b)); });)
  y.copy_(first(b));
}
void carafe_backward(Tensor grad, Tensor rx, Tensor masks, Tensor, Tensor, Tensor, Tensor, Tensor gx, Tensor gm,
                     int k, int g, int s) {
  auto top = last(grad), x = last(rx), high = torch::zeros_like(top), low = torch::zeros_like(x);
  auto mask_grad = torch::zeros_like(last(masks));
  const int64_t n = grad.size(0) * grad.size(2) * grad.size(3), n_low = rx.numel() / rx.size(1);
  const int h = grad.size(2), w = grad.size(3), c = masks.size(1);
  DISPATCH(grad,
    each_block(n, [&] { dev::CARAFEBackward_Feature<scalar_t>(n, data<scalar_t>(top), data<scalar_t>(masks), k, g, s,
        IMAGE(rx), h, w, c, data<scalar_t>(high)); });
    each_block(n_low, [&] { dev::FeatureSum<scalar_t>(n_low, data<scalar_t>(high), s, IMAGE(rx),
        data<scalar_t>(low)); });
    each_block(n * c, [&] { dev::CARAFEBackward_Mask<scalar_t>(n * c, data<scalar_t>(top), data<scalar_t>(x), k, g, s,
        IMAGE(rx), h, w, c, data<scalar_t>(mask_grad)); });)
  gx.copy_(first(low));
  gm.copy_(first(mask_grad));
}
void roi_pool_forward(Tensor x, Tensor rois, Tensor y, Tensor argmax, int ph, int pw, float scale) {
  DISPATCH(x, dev::roi_pool_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(x), data<scalar_t>(rois),
      data<scalar_t>(y), data<int>(argmax), ph, pw, static_cast<scalar_t>(scale), IMAGE(x));)
}
void roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, Tensor gx, int ph, int pw, float) {
  DISPATCH(gx, dev::roi_pool_backward_cuda_kernel<scalar_t>(grad.numel(), data<scalar_t>(grad), data<scalar_t>(rois),
      data<int>(argmax), data<scalar_t>(gx), ph, pw, IMAGE(gx));)
}
void roi_align_forward(Tensor x, Tensor rois, Tensor y, Tensor ay, Tensor ax, int ph, int pw, float scale, int ratio,
                       int mode, bool aligned) {
  DISPATCH(x, dev::roi_align_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(x), data<scalar_t>(rois),
      data<scalar_t>(y), data<scalar_t>(ay), data<scalar_t>(ax), ph, pw, static_cast<scalar_t>(scale), ratio, mode,
      aligned, IMAGE(x));)
}
void roi_align_backward(Tensor grad, Tensor rois, Tensor ay, Tensor ax, Tensor gx, int ph, int pw, float scale,
                        int ratio, int mode, bool aligned) {
  DISPATCH(gx, dev::roi_align_backward_cuda_kernel<scalar_t>(grad.numel(), data<scalar_t>(grad),
      data<scalar_t>(rois), data<scalar_t>(ay), data<scalar_t>(ax), data<scalar_t>(gx), ph, pw,
      static_cast<scalar_t>(scale), ratio, mode, aligned, IMAGE(gx));)
}
void deform_roi_pool_forward(Tensor x, Tensor rois, Tensor offset, Tensor y, int ph, int pw, float scale, int ratio,
                             float gamma) {
  DISPATCH(x, dev::deform_roi_pool_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(x), data<scalar_t>(rois),
      data<scalar_t>(offset), data<scalar_t>(y), ph, pw, static_cast<scalar_t>(scale), ratio,
      static_cast<scalar_t>(gamma), IMAGE(x));)
}
void deform_roi_pool_backward(Tensor grad, Tensor x, Tensor rois, Tensor offset, Tensor gx, Tensor go, int ph, int pw,
                              float scale, int ratio, float gamma) {
  DISPATCH(x, dev::deform_roi_pool_backward_cuda_kernel<scalar_t>(grad.numel(), data<scalar_t>(grad),
      data<scalar_t>(x), data<scalar_t>(rois), data<scalar_t>(offset), data<scalar_t>(gx), data<scalar_t>(go), ph, pw,
      static_cast<scalar_t>(scale), ratio, static_cast<scalar_t>(gamma), IMAGE(x));)
}
#define ATTENTION data<int64_t>(shapes), data<int64_t>(starts), data<scalar_t>(at), data<scalar_t>(weights), \\
    (int)value.size(0), (int)value.size(1), (int)value.size(2), (int)value.size(3), (int)at.size(3), \\
    (int)at.size(1), (int)at.size(4)
Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& at,
                              const Tensor& weights, const int) {
  auto y = torch::zeros({value.size(0), at.size(1), value.size(2) * value.size(3)}, value.options());
  DISPATCH(value, dev::ms_deformable_im2col_gpu_kernel<scalar_t>(y.numel(), data<scalar_t>(value), ATTENTION,
      data<scalar_t>(y));)
  return y;
}
void ms_deform_attn_backward(const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& at,
                             const Tensor& weights, const Tensor& grad, Tensor& gv, Tensor& gl, Tensor& gw, const int) {
  DISPATCH(value, dev::ms_deformable_col2im_gpu_kernel_gm<scalar_t>(grad.numel(), data<scalar_t>(grad),
      data<scalar_t>(value), ATTENTION, data<scalar_t>(gv), data<scalar_t>(gl), data<scalar_t>(gw));)
}
void sigmoid_focal_loss_forward(Tensor x, Tensor target, Tensor weight, Tensor y, float gamma, float alpha) {
  DISPATCH(x, dev::sigmoid_focal_loss_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(x),
      data<int64_t>(target), data<scalar_t>(weight), data<scalar_t>(y), gamma, alpha, x.size(1));)
}
void sigmoid_focal_loss_backward(Tensor x, Tensor target, Tensor weight, Tensor gx, float gamma, float alpha) {
  DISPATCH(x, dev::sigmoid_focal_loss_backward_cuda_kernel<scalar_t>(x.numel(), data<scalar_t>(x),
      data<int64_t>(target), data<scalar_t>(weight), data<scalar_t>(gx), gamma, alpha, x.size(1));)
}
void softmax_focal_loss_forward(Tensor p, Tensor target, Tensor weight, Tensor y, float gamma, float alpha) {
  DISPATCH(p, dev::softmax_focal_loss_forward_cuda_kernel<scalar_t>(y.numel(), data<scalar_t>(p),
      data<int64_t>(target), data<scalar_t>(weight), data<scalar_t>(y), gamma, alpha, p.size(1));)
}
void softmax_focal_loss_backward(Tensor p, Tensor target, Tensor weight, Tensor buff, Tensor gx, float gamma,
                                 float alpha) {
  DISPATCH(p,
    dev::softmax_focal_loss_backward_cuda1_kernel<scalar_t>(buff.numel(), data<scalar_t>(p), data<int64_t>(target),
        data<scalar_t>(weight), data<scalar_t>(buff), gamma, alpha, p.size(1));
    dev::softmax_focal_loss_backward_cuda2_kernel<scalar_t>(gx.numel(), data<scalar_t>(p), data<int64_t>(target),
        data<scalar_t>(buff), data<scalar_t>(gx), p.size(1));)
}
void sync_bn_forward_mean(const Tensor x, Tensor mean) {
  each_block(x.size(1), [&] { dev::sync_bn_forward_mean_cuda_kernel<float>(data<float>(x), data<float>(mean),
      x.size(0), x.size(1), x.size(2)); });
}
void sync_bn_forward_var(const Tensor x, const Tensor mean, Tensor var) {
  each_block(x.size(1), [&] { dev::sync_bn_forward_var_cuda_kernel<float>(data<float>(x), data<float>(mean),
      data<float>(var), x.size(0), x.size(1), x.size(2)); });
}
void sync_bn_forward_output(const Tensor x, const Tensor mean, const Tensor var, const Tensor weight,
                            const Tensor bias, Tensor running_mean, Tensor running_var, Tensor norm, Tensor std,
                            Tensor y, float eps, float momentum, int group_size) {
  each_block(x.size(1), [&] { dev::sync_bn_forward_output_cuda_kernel<float>(data<float>(x), data<float>(mean),
      data<float>(var), data<float>(running_mean), data<float>(running_var), data<float>(weight), data<float>(bias),
      data<float>(norm), data<float>(std), data<float>(y), x.size(0), x.size(1), x.size(2), eps, momentum,
      group_size); });
}
void sync_bn_backward_param(const Tensor grad, const Tensor norm, Tensor gw, Tensor gb) {
  each_block(grad.size(1), [&] { dev::sync_bn_backward_param_cuda_kernel<float>(data<float>(grad), data<float>(norm),
      data<float>(gw), data<float>(gb), grad.size(0), grad.size(1), grad.size(2)); });
}
void sync_bn_backward_data(const Tensor grad, const Tensor weight, const Tensor gw, const Tensor gb,
                           const Tensor norm, const Tensor std, Tensor gx) {
  dev::sync_bn_backward_data_cuda_kernel<float>(gx.numel(), data<float>(grad), data<float>(weight), data<float>(gw),
      data<float>(gb), data<float>(norm), data<float>(std), data<float>(gx), gx.size(0), gx.size(1), gx.size(2));
}
void masked_im2col_forward(const Tensor x, const Tensor rows, const Tensor columns, Tensor patches, const int kh,
                           const int kw, const int ph, const int pw) {
  DISPATCH(x, dev::MaskedIm2colForward<scalar_t>(x.size(1) * rows.size(0), data<scalar_t>(x), x.size(2), x.size(3),
      kh, kw, ph, pw, data<int64_t>(rows), data<int64_t>(columns), rows.size(0), data<scalar_t>(patches));)
}
void masked_col2im_forward(const Tensor patches, const Tensor rows, const Tensor columns, Tensor x, int h, int w,
                           int c) {
  DISPATCH(x, dev::MaskedCol2imForward<scalar_t>(c * rows.size(0), data<scalar_t>(patches), h, w, c,
      data<int64_t>(rows), data<int64_t>(columns), rows.size(0), data<scalar_t>(x));)
}
Tensor line_near(Tensor lanes, float overlap) {
  auto near = torch::zeros({lanes.size(0), lanes.size(0)}, torch::kBool);
  for (int64_t i = 0; i < lanes.size(0); i++)
    for (int64_t j = 0; j < lanes.size(0); j++)
      near[i][j] = dev::devIoU<float>(data<float>(lanes[i]), data<float>(lanes[j]), overlap);
  return near;
}
}  // namespace wrap
"""


def binding(pybind: str, name: str, scope: str = '') -> str:
    """mmcv's own binding of an operator, to a function of the same name in a namespace."""
    text = re.search(rf'm\.def\(\s*"{name}",.*?\);', pybind, re.DOTALL).group()
    return text.replace(f'&{name}', f'&{scope}{name}')


def compiled(source: Path, folder: Path):
    """A module with the submodules ``cpu`` and ``kernel``, compiled from mmcv's source in a folder."""
    csrc = source / 'mmcv' / 'ops' / 'csrc'
    shim = folder / 'shim'
    (shim / 'ATen' / 'cuda').mkdir(parents=True)
    (shim / 'cuda.h').touch()
    (shim / 'ATen' / 'cuda' / 'DeviceUtils.cuh').touch()
    (shim / 'pytorch_cuda_helper.hpp').write_text(SHIM)
    pybind = (csrc / 'pytorch' / 'pybind.cpp').read_text()

    carafe = (csrc / 'common' / 'cuda' / 'carafe_cuda_kernel.cuh').read_text()
    # One thread for a pixel, none of another warp to wait for; and without the sum of halves.
    carafe = re.sub(r'#define (WARP_SIZE|THREADS_PER_PIXEL) 32', r'#define \1 1', carafe)
    carafe = re.sub(
        r'template <>\s*__device__ __forceinline__ phalf warpReduceSum.*?\n}\n', '', carafe, flags=re.DOTALL
    )
    (folder / 'carafe.cuh').write_text(carafe)
    names = ('roi_pool', 'roi_align', 'deform_roi_pool', 'ms_deform_attn', 'sigmoid_focal_loss', 'softmax_focal_loss')
    names += ('sync_bn', 'masked_conv2d', 'line_nms')
    kernels = [f'#include "cuda/{name}_cuda_kernel.cuh"' for name in names]

    text = [
        '#include "pytorch_cuda_helper.hpp"',
        *[f'#include "pytorch/{way}{name}.cpp"' for name in CPU for way in ('cpu/', '')],
        *[
            'namespace dev {',
            '#include "common_cuda_helper.hpp"',
            *kernels,
            'unsigned long long removed[16];',
            '#include "carafe.cuh"',
            '}',
        ],
        *['namespace dev_naive {', '#include "cuda/carafe_naive_cuda_kernel.cuh"', '}'],
        WRAPPERS,
        *['void cpu(py::module m) {', *[binding(pybind, name) for names in CPU.values() for name in names], '}'],
        *['void kernel(py::module m) {', *[binding(pybind, name, 'wrap::') for name in KERNELS]],
        'm.def("line_near", &wrap::line_near); }',
        'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { cpu(m.def_submodule("cpu")); kernel(m.def_submodule("kernel")); }',
    ]
    (folder / 'operators.cpp').write_text('\n'.join(text))
    return load(
        'mmcv_operators',
        [str(folder / 'operators.cpp')],
        extra_include_paths=[str(p) for p in (shim, folder, csrc, csrc / 'common', csrc / 'common' / 'cuda')],
        extra_cflags=['-O1', '-w', '-ffp-contract=off'],
        build_directory=str(folder),
        verbose=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder of the unpacked source of mmcv')
    source = parser.parse_args().source
    spec = importlib.util.spec_from_file_location('mmcv_ops_cases', HERE / 'mmcv_ops_cases.py')
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        module = compiled(source, Path(folder))
        files = {}
        for name, run in cases.CASES.items():
            results = run(module.kernel if name in cases.KERNELS else module.cpu)
            arrays = files.setdefault(name.split('.')[0], {})
            arrays.update({f'{name}/{key}': value.numpy() for key, value in results.items()})
    DATA.mkdir(parents=True, exist_ok=True)
    for name, arrays in files.items():
        np.savez_compressed(DATA / f'{name}.npz', **arrays)
        print(f'{name}.npz: {len(arrays)} arrays, {(DATA / f"{name}.npz").stat().st_size} bytes')


if __name__ == '__main__':
    main()
