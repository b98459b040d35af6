"""Attentions with one fault each, written for the judge's tests; what each is found by stands in test_faults.py."""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SPACE = (2, 3)


class Right(nn.Module):
    """SE as the paper has it; the faults below begin from here."""

    def __init__(self, channels, ratio=4):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1)

    def logit(self, context):
        return self.fc2(torch.relu(self.fc1(context)))

    def forward(self, x):
        return x * torch.sigmoid(self.logit(x.mean(SPACE, keepdim=True)))


# ------------------------------------------------------------------------------------- another thing than the paper's


class MaximumForAverage(Right):
    def forward(self, x):
        return x * torch.sigmoid(self.logit(x.amax(SPACE, keepdim=True)))


class SumForAverage(Right):
    def forward(self, x):
        return x * torch.sigmoid(self.logit(x.sum(SPACE, keepdim=True)))


class WrongRatio(Right):
    def __init__(self, channels):
        super().__init__(channels, ratio=2)


class NoSigmoid(Right):
    def forward(self, x):
        return x * self.logit(x.mean(SPACE, keepdim=True))


class HardSigmoid(Right):
    def forward(self, x):
        return x * F.hardsigmoid(self.logit(x.mean(SPACE, keepdim=True)))


class DoubleResidual(Right):
    def forward(self, x):
        return x + super().forward(x)


class NoReLU(Right):
    def logit(self, context):
        return self.fc2(self.fc1(context))


class GateAlone(Right):
    def forward(self, x):
        return torch.sigmoid(self.logit(x.mean(SPACE, keepdim=True))).expand_as(x).contiguous()


class SoftmaxForSigmoid(Right):
    def forward(self, x):
        return x * torch.softmax(self.logit(x.mean(SPACE, keepdim=True)), 1)


class Cbam(nn.Module):
    """CBAM; ``channel_max``, ``spatial_max``: with the branches that are forgotten first."""

    channel_max = spatial_max = True
    parallel = spatial_first = False

    def __init__(self, channels, ratio=4):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // ratio)
        self.fc2 = nn.Linear(channels // ratio, channels)
        self.conv = nn.Conv2d(1 + self.spatial_max, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def mlp(self, x):
        return self.fc2(torch.relu(self.fc1(x)))

    def channel(self, x):
        logit = self.mlp(x.mean(SPACE))
        if self.channel_max:
            logit = logit + self.mlp(x.amax(SPACE))
        return torch.sigmoid(logit)[:, :, None, None]

    def spatial(self, x):
        pooled = [x.mean(1, keepdim=True)]
        if self.spatial_max:
            pooled.append(x.amax(1, keepdim=True))
        return torch.sigmoid(self.bn(self.conv(torch.cat(pooled, 1))))

    def forward(self, x):
        if self.parallel:
            return x * self.channel(x) * self.spatial(x)
        if self.spatial_first:
            x = x * self.spatial(x)
            return x * self.channel(x)
        x = x * self.channel(x)
        return x * self.spatial(x)


class CbamWithoutChannelMaximum(Cbam):
    channel_max = False


class CbamWithoutSpatialMaximum(Cbam):
    spatial_max = False


class CbamInParallel(Cbam):
    parallel = True


class CbamSpatialFirst(Cbam):
    spatial_first = True


class CbamOfOneLayer(Cbam):
    """The channel gate is one fully connected layer over the average."""

    channel_max = False

    def __init__(self, channels):
        super().__init__(channels)
        self.fc1 = nn.Linear(channels, channels)
        del self.fc2

    def mlp(self, x):
        return self.fc1(x)


class Context(nn.Module):
    """GC; ``axis``: of its softmax."""

    axis = 2

    def __init__(self, channels, ratio=4):
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(channels, channels // ratio, 1),
            nn.LayerNorm([channels // ratio, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(channels // ratio, channels, 1),
        )

    def forward(self, x):
        weight = self.mask(x).flatten(2).softmax(self.axis)
        context = (x.flatten(2) * weight).sum(2)
        return x + self.add(context[:, :, None, None])


class SoftmaxOverChannels(Context):
    axis = 1


class SoftmaxOverBatch(Context):
    axis = 0


class GroupsIgnored(nn.Module):
    """SGE whose groups are not used."""

    def __init__(self, channels, groups=4):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.zeros(1, 1, 1, 1)), nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x):
        d = (x * x.mean(SPACE, keepdim=True)).sum(1, keepdim=True)
        d = (d - d.mean(SPACE, keepdim=True)) / (d.std(SPACE, keepdim=True) + 1e-5)
        return x * torch.sigmoid(self.scale * d + self.bias)


# ------------------------------------------------------------------------------------------------------------- numbers


class NanOnOnePixel(nn.Module):
    """The deviation of one number is 0 / 0."""

    def forward(self, x):
        return x * torch.sigmoid((x - x.mean(SPACE, keepdim=True)) / (x.std(SPACE, keepdim=True) + 1e-5))


class GradientNanOnConstantMaps(nn.Module):
    """The root's derivative at 0 is infinite, whatever is added to its result."""

    def forward(self, x):
        centred = x - x.mean(SPACE, keepdim=True)
        return x * torch.sigmoid(centred / (centred.square().mean(SPACE, keepdim=True).sqrt() + 1e-5))


class NanOnZeros(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x / x.abs().amax(SPACE, keepdim=True))


class OverflowInHalfPrecision(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid((x * x.mean(SPACE, keepdim=True)).sum(1, keepdim=True) * 1e-4)


class NanHidden(Right):
    def forward(self, x):
        return torch.nan_to_num(super().forward(x))


class ToFloat32(Right):
    def forward(self, x):
        context = x.float().mean(SPACE, keepdim=True)
        return x * torch.sigmoid(self.logit(context.to(self.fc1.weight.dtype))).float()


class FloatConstant(nn.Module):
    """Does not run in another dtype than float32."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x * torch.sigmoid(torch.einsum('nchw,dc->ndhw', x, torch.eye(self.channels)))


# ------------------------------------------------------------------------------------------------- shapes and layouts


class ViewOnly(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        flat = x.view(n * c, h * w)
        return (flat * torch.sigmoid(flat.mean(1, keepdim=True))).view(n, c, h, w)


class ReadsMemory(nn.Module):
    """Reads a map as if it were contiguous."""

    def forward(self, x):
        stretched = torch.as_strided(x, x.shape, (x[0].numel(), x[0, 0].numel(), x.shape[3], 1))
        return x * torch.sigmoid(stretched.mean(1, keepdim=True))


class FixedSize(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, *size))

    def forward(self, x):
        return x * torch.sigmoid(self.weight * x.mean(1, keepdim=True))


class SquareOnly(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.mean(1, keepdim=True).transpose(2, 3))


class EvenOnly(nn.Module):
    def forward(self, x):
        small = F.avg_pool2d(x, 2) if min(x.shape[2:]) > 1 else x
        return x * torch.sigmoid(small.repeat_interleave(2, 2).repeat_interleave(2, 3))


class RemembersSize(nn.Module):
    """A grid is made at the first call, and cut or repeated afterwards."""

    def __init__(self, channels):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen = max(self.seen, x.shape[2])
        return x * torch.sigmoid(x.mean(SPACE, keepdim=True) * self.seen)


class HalfSize(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 2)


class ReturnsTuple(Right):
    def forward(self, x):
        return super().forward(x), x


class DropsBatch(Right):
    def forward(self, x):
        context = x.mean(SPACE, keepdim=True).squeeze()
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(context[:, :, None, None]))))


# --------------------------------------------------------------------------------------------------- modes and batches


class BatchLeak(Right):
    def forward(self, x):
        return x * torch.sigmoid(self.logit(x.mean((0, 2, 3), keepdim=True)))


class BatchStatistics(nn.Module):
    """Uses the statistics of the batch at test time."""

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, track_running_stats=False)

    def forward(self, x):
        return x * torch.sigmoid(self.bn(x))


class UpdatesInEvaluation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        bn = self.bn
        return x * torch.sigmoid(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, True))


class ModesExchanged(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        bn = self.bn
        new = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, not self.training)
        return x * torch.sigmoid(new)


class OnlyInTraining(Right):
    def forward(self, x):
        return super().forward(x) if self.training else x


class StaysInTraining(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return x * torch.sigmoid(self.bn(x))


class DropoutInEvaluation(Right):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1)


class RandomGate(Right):
    def forward(self, x):
        context = x.mean(SPACE, keepdim=True)
        return x * torch.sigmoid(self.logit(context + torch.randn_like(context)))


class InPlace(Right):
    def forward(self, x):
        return x.mul_(torch.sigmoid(self.logit(x.mean(SPACE, keepdim=True))))


class InPlaceReLU(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x)


# --------------------------------------------------------------------------------------------------- learning and files


class UnusedBranch(Right):
    def __init__(self, channels):
        super().__init__(channels)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)


class DeadParameter(Right):
    def __init__(self, channels):
        super().__init__(channels)
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        return super().forward(x) + 0 * self.gamma


class HalfDead(nn.Module):
    """Only every second weight is used."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2 * channels))

    def forward(self, x):
        return x * torch.sigmoid(x.mean(SPACE, keepdim=True) * self.weight[::2, None, None])


class Detached(Right):
    def forward(self, x):
        return x * torch.sigmoid(self.logit(x.mean(SPACE, keepdim=True))).detach()


class WrongBackward(nn.Module):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.sigmoid(x.mean(SPACE, keepdim=True))
            ctx.save_for_backward(y)
            return x * y

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    def forward(self, x):
        return self.Function.apply(x)


class PlainTensor(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mask = torch.linspace(0, 1, channels)[None, :, None, None]

    def forward(self, x):
        return x * torch.sigmoid(x.mean(SPACE, keepdim=True) * self.mask.to(x))


class PlainList(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = [nn.Conv2d(channels, channels, 1)]

    def forward(self, x):
        return x * torch.sigmoid(self.layers[0].to(x.dtype)(x.mean(SPACE, keepdim=True)))


class StateOutside(nn.Module):
    """Its running mean is a number that no checkpoint has."""

    def __init__(self, channels):
        super().__init__()
        self.mean = 0.0

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * float(x.detach().abs().mean())
        return x * torch.sigmoid(x.mean(SPACE, keepdim=True) - self.mean)


class KeepsOutput(Right):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Lambda(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.act = lambda t: torch.sigmoid(t)

    def forward(self, x):
        return x * self.act(x.mean(SPACE, keepdim=True))


class GraphBreak(Right):
    def forward(self, x):
        if float(x.detach().mean()) > 1e9:
            return x
        return super().forward(x)


class Constructor(nn.Module):
    def __init__(self, channels):
        raise NotImplementedError('GE needs\nan extent')


class Raises(nn.Module):
    def forward(self, x):
        if x.shape[2] == 1:
            raise ValueError('a map needs\ntwo rows')
        return x * torch.sigmoid(x)


class SystemExits(nn.Module):
    def forward(self, x):
        if x.shape[2] == 1:
            sys.exit('no')
        return x * torch.sigmoid(x)


# ------------------------------------------------------------------------------------ what ends or stops a process


class Hangs(nn.Module):
    def forward(self, x):
        while x.shape[2] == 1:
            time.sleep(0.1)
        return x * torch.sigmoid(x)


class Ends(nn.Module):
    def forward(self, x):
        if x.isnan().any():
            os._exit(3)
        return x * torch.sigmoid(x)


class Crashes(nn.Module):
    def forward(self, x):
        if x.shape[2] == 1:
            os.kill(os.getpid(), 11)
        return x * torch.sigmoid(x)
