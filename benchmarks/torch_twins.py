"""PyTorch twins of what `benchmarks.side_by_side` times, as a user of PyTorch writes them: eager, channels first.

Parameters have the names of the released files, so that `jaxdeblur.interop` moves a twin's weights into our networks.
Written from the same descriptions as ours: layers, conventions and sources stand there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The ops.


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """(B, C, H, W) read along flows (B, 2, H, W) in pixels; zero outside."""
    height, width = image.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def cost_volume(one: Tensor, zero: Tensor, radius: int) -> Tensor:
    """Products of (B, C, H, W) with those moved by up to radius in both axes, summed over channels."""
    height, width = one.shape[-2:]
    padded = F.pad(zero, [radius] * 4)
    return torch.stack(
        [
            (one * padded[:, :, dy : dy + height, dx : dx + width]).sum(dim=1)
            for dy in range(2 * radius + 1)
            for dx in range(2 * radius + 1)
        ],
        dim=1,
    )


# Multi-task units.


def _conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
    padding = kernel_size // 2 if padding is None else padding
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size, stride, padding), nn.ReLU())


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU())


class Unit(nn.Module):
    def __init__(self, c: int, blocks: int) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = _conv(2 * c, c, 5), _conv(c, c, 3, 2), _conv(c, 2 * c, 3, 2)
        self.RBs = nn.ModuleList(nn.Sequential(*_conv(2 * c, 2 * c, 3), *_conv(2 * c, 2 * c, 3)) for _ in range(blocks))
        self.RB_end, self.dec1, self.dec2 = _conv(2 * c, 2 * c, 3), _up(2 * c, c), _up(c, c)

    def forward(self, x: Tensor) -> Tensor:
        full = self.enc1(x)
        half = self.enc2(full)
        quarter = self.enc3(half)
        y = quarter
        for block in self.RBs:
            y = y + block(y)
        return self.dec2(self.dec1(self.RB_end(y) + quarter) + half) + full


class MultiTaskUnits(nn.Module):
    """`forward` restores a frame: window (B, 5, 3, H, W), and of the frame before (motion, features, restored) or None.

    Of more than one scale the carries are a list, the finest first.
    """

    def __init__(self, units: int, channels: int = 26, blocks: int = 8, radius: int = 10, scales: int = 1) -> None:
        super().__init__()
        c = channels
        self.units, self.radius, self.scales = units, radius, scales
        self.base_conv, self.inp_prev_conv = _conv(3, c, 3), _conv(15, c, 3)
        self.HGs = nn.ModuleList(Unit(c, blocks) for _ in range(units))
        self.motion_layer = nn.ModuleList([_conv(c, 2 * c, 5, 4, 1)])
        self.deblur_layer = nn.ModuleList(nn.Conv2d(2 * c, 3, 3, 1, 1) for _ in range(units - 1))
        self.out = nn.Conv2d(c, 3, 3, 1, 1)

    def forward(self, window: Tensor, carry: list | None = None, train: bool = False) -> tuple[list, dict]:
        return self._scale(window, carry or [None] * self.scales, train)

    def _scale(self, window: Tensor, carry: list, train: bool) -> tuple[list, dict]:
        frame = window[:, 2]
        coarse: list = []
        intermediate: list[Tensor] = []
        if len(carry) > 1:
            batch, frames, _, height, width = window.shape
            half = F.avg_pool2d(window.flatten(0, 1), 2).unflatten(0, (batch, frames))
            coarse, found = self._scale(half, carry[1:], train)
            change = F.interpolate(found["restored"] - half[:, 2], (height, width), mode="bilinear")
            frame = (frame + change).clamp(0, 1)
            intermediate = [frame]
        before = carry[0]
        structure = self.base_conv(frame)
        previous = frame if before is None else before[2]
        history = torch.cat([window[:, 0], window[:, 1], previous, window[:, 3], window[:, 4]], dim=1)
        features = self.HGs[0](torch.cat([structure, self.inp_prev_conv(history)], dim=1))
        found, motion = {}, None
        if self.units > 1:  # a single unit hands nothing on
            motion = self.motion_layer[0](structure + features)
            found["cost"] = self._matching(motion, motion if before is None else before[0])
            shift = self._displacement(found["cost"].detach())
            moved = None if before is None else warp(before[1], shift)
            for n in range(1, self.units):
                joined = torch.cat([features, warp(features, shift) if moved is None else moved], dim=1)
                if train:
                    intermediate.append(frame + self.deblur_layer[n - 1](joined))
                features = self.HGs[n](joined)
        restored = frame + self.out(features)
        handed_on = restored if train else restored.clamp(0, 1)
        after = tuple(None if x is None else x.detach() for x in (motion, features, handed_on))
        return [after, *coarse], {"restored": restored, "intermediate": intermediate, **found}

    def _matching(self, motion: Tensor, previous: Tensor) -> Tensor:
        cost = cost_volume(F.normalize(motion), F.normalize(previous), self.radius)
        return F.avg_pool2d(cost, 5, 1, 2)

    def _displacement(self, cost: Tensor) -> Tensor:
        """In pixels of the frame, the same over blocks of 4 x 4."""
        side = 2 * self.radius + 1
        best = cost.argmax(dim=1)
        shift = torch.stack([best % side - self.radius, best // side - self.radius], dim=1)
        return 4.0 * F.interpolate(shift.to(cost.dtype), scale_factor=4, mode="nearest")


# CDVD-TSP.

_PYRAMID = (16, 32, 64, 96, 128, 196)
_DENSE = (128, 128, 96, 64, 32)
_CONTEXT = (128, 128, 128, 96, 64, 32)
_NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")


def _leaky(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation), nn.LeakyReLU(0.1)]


class Extractor(nn.Module):
    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        for number, inputs, outputs in zip(_NUMBERS, (3, *channels), channels):
            layers = _leaky(inputs, outputs, 2) + _leaky(outputs, outputs) + _leaky(outputs, outputs)
            setattr(self, f"module{number}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number in _NUMBERS:
            x = getattr(self, f"module{number}")(x)
            features.append(x)
        return features[1:]


class Decoder(nn.Module):
    def __init__(self, level: int, channels: tuple[int, ...], dense: tuple[int, ...]) -> None:
        super().__init__()
        self.level = level
        inputs = 81
        if level < 6:
            above = 81 + sum(dense) + (channels[level] + 4 if level < 5 else 0)
            self.moduleUpflow = nn.ConvTranspose2d(2, 2, 4, 2, 1)
            self.moduleUpfeat = nn.ConvTranspose2d(above, 2, 4, 2, 1)
            inputs += channels[level - 1] + 4
        for number, outputs in zip(_NUMBERS, dense):
            setattr(self, f"module{number}", nn.Sequential(*_leaky(inputs, outputs)))
            inputs += outputs
        self.moduleSix = nn.Sequential(nn.Conv2d(inputs, 2, 3, 1, 1))
        self.outputs = inputs

    def forward(self, one: Tensor, zero: Tensor, coarse: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        others = []
        if coarse is not None:
            flow, dense = self.moduleUpflow(coarse[0]), self.moduleUpfeat(coarse[1])
            zero = self._warp_where_whole(zero, flow * (20 / 2**self.level))
            others = [one, flow, dense]
        cost = cost_volume(one, zero, 4) / one.shape[1]
        x = torch.cat([F.leaky_relu(cost, 0.1), *others], dim=1)
        for number in _NUMBERS[:5]:
            x = torch.cat([getattr(self, f"module{number}")(x), x], dim=1)
        return self.moduleSix(x), x

    @staticmethod
    def _warp_where_whole(image: Tensor, flow: Tensor) -> Tensor:
        found = warp(torch.cat([image, torch.ones_like(image[:, :1])], dim=1), flow)
        return found[:, :-1] * (found[:, -1:].detach() > 0.999)


class Refiner(nn.Module):
    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs, dilation in zip(channels, (1, 2, 4, 8, 16, 1)):
            layers += _leaky(inputs, outputs, 1, dilation)
            inputs = outputs
        self.moduleMain = nn.Sequential(*layers, nn.Conv2d(inputs, 2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.moduleMain(x)


class PWCNet(nn.Module):
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels, dense, context = (
            tuple(max(1, round(width * count)) for count in counts) for counts in (_PYRAMID, _DENSE, _CONTEXT)
        )
        self.moduleExtractor = Extractor(channels)
        for level in (2, 3, 4, 5, 6):
            setattr(self, f"module{_NUMBERS[level - 1]}", Decoder(level, channels, dense))
        self.moduleRefiner = Refiner(self.moduleTwo.outputs, context)

    def encode(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        whole = (-(-height // 64) * 64, -(-width // 64) * 64)
        image = image if whole == (height, width) else F.interpolate(image, whole, mode="bilinear")
        return self.moduleExtractor(image)

    def match(self, one: list[Tensor], zero: list[Tensor], height: int, width: int) -> Tensor:
        """In pixels, (B, 2, height, width)."""
        coarse: Any = None
        for level in (6, 5, 4, 3, 2):
            coarse = getattr(self, f"module{_NUMBERS[level - 1]}")(one[level - 2], zero[level - 2], coarse)
        flow = 20 / 4 * (coarse[0] + self.moduleRefiner(coarse[1]))
        scale = torch.tensor([width / flow.shape[-1], height / flow.shape[-2]]).reshape(1, 2, 1, 1)
        return F.interpolate(flow, (height, width), mode="bilinear") * scale


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, channels, 5, 1, 2), nn.Conv2d(channels, channels, 5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Restoration(nn.Module):
    def __init__(self, c: int, blocks: int) -> None:
        super().__init__()

        def several(channels: int) -> list[nn.Module]:
            return [ResidualBlock(channels) for _ in range(blocks)]

        def up(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1), nn.ReLU())

        self.inBlock = nn.Sequential(_conv(10, c, 5), *several(c))
        self.encoder_first = nn.Sequential(_conv(c, 2 * c, 5, 2), *several(2 * c))
        self.encoder_second = nn.Sequential(_conv(2 * c, 4 * c, 5, 2), *several(4 * c))
        self.decoder_second = nn.Sequential(*several(4 * c), up(4 * c, 2 * c))
        self.decoder_first = nn.Sequential(*several(2 * c), up(2 * c, c))
        self.outBlock = nn.Sequential(*several(c), nn.Conv2d(c, 3, 5, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        full = self.inBlock(x)
        half = self.encoder_first(full)
        y = self.decoder_second(self.encoder_second(half))
        return self.outBlock(self.decoder_first(y + half) + full)


class FlowNet(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        self.moduleNetwork = PWCNet(width)


class CDVDTSP(nn.Module):
    """Two stages. `forward` restores a frame of a stream, `cascade` a window of five by itself."""

    def __init__(self, channels: int = 32, blocks: int = 3, flow_width: float = 1.0) -> None:
        super().__init__()
        self.flow_net = FlowNet(flow_width)
        self.recons_net = Restoration(channels, blocks)

    def start(self, window: Tensor) -> list:
        images, carry = [window[:, i] for i in range(4)], []
        for _ in range(2):
            frames = [self._see(image) for image in images]
            carry.append(frames[-2:])
            images = [self._restore(*frames[i : i + 3]) for i in range(len(frames) - 2)]
        return carry

    def forward(self, window: Tensor, carry: list) -> tuple[list, Tensor]:
        image, after = window[:, -1], []
        for previous, current in carry:
            newest = self._see(image)
            image = self._restore(previous, current, newest)
            after.append([current, newest])
        return after, image

    def cascade(self, window: Tensor) -> list[Tensor]:
        """The stages' frames, (B, 3, 3, H, W) and (B, 1, 3, H, W)."""
        images, stages = window, []
        for _ in range(2):
            batch, count = images.shape[:2]
            seen = self._see(images.flatten(0, 1))

            def part(first: int, seen=seen, batch=batch, count=count) -> tuple[Tensor, list[Tensor]]:
                image, *encoding = (
                    x.unflatten(0, (batch, count))[:, first : first + count - 2].flatten(0, 1)
                    for x in (seen[0], *seen[1])
                )
                return image, encoding

            images = self._restore(part(0), part(1), part(2)).unflatten(0, (batch, count - 2))
            stages.append(images)
        return stages

    def _see(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        return image, self.flow_net.moduleNetwork.encode(image)

    def _restore(self, previous: tuple, current: tuple, following: tuple) -> Tensor:
        image = current[0]
        neighbours = torch.cat([previous[0], following[0]])
        encodings = [torch.cat(pair) for pair in zip(previous[1], following[1])]
        twice = [torch.cat([x, x]) for x in current[1]]
        flows = self.flow_net.moduleNetwork.match(twice, encodings, *image.shape[-2:])
        found = warp(torch.cat([neighbours, torch.ones_like(neighbours[:, :1])], dim=1), flows)
        valid = (found[:, -1:] > 0.999).detach()
        warped = found[:, :-1] * valid
        (before, after), (valid_before, valid_after) = warped.chunk(2), valid.chunk(2)
        with torch.no_grad():
            means = [F.avg_pool2d(x, 5, 1, 2) for x in (before, image, after)]
            squares = (means[0] - means[1]) ** 2 + (means[2] - means[1]) ** 2
            prior = torch.exp(-torch.sqrt(squares.sum(dim=1, keepdim=True) / 2)) * (valid_before & valid_after)
        return self.recons_net(torch.cat([before, image, after, prior], dim=1))
