"""The alias-free part of a network's answer to a tone: its harmonics below half the sample rate.

Method: Carson, Wright and Bilbao, arXiv 2505.11375: the harmonics are read from a windowed spectrum and
added up again. All of it is float64, whatever the teacher ran in: the window's side lobes lie at -120 dB,
where float32 has its rounding noise.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parbake.producers.audio.torch_settings import teacher_settings

if TYPE_CHECKING:
    import torch

_SIDE_LOBES_DB = 120.0
_TERMS = 24  # of the series in the window's moments: the next is below 1e-19 within half a bin
_BLOCK_LINES = 32  # harmonics added up at once: 27 MB of factors for 64 tones


def kept_steps(sample_rate: float) -> int:
    """Steps of the last second, the part that is band-limited: its bins lie 1 Hz apart."""
    return round(sample_rate)


def band_limited(y: torch.Tensor, f0_hz: NDArray[np.float64], sample_rate: float) -> torch.Tensor:
    """The DC and the floor(sample_rate / (2 f0)) harmonics of each row of y [tone, step]; float64.

    ``f0_hz`` [tone]: the fundamental of each row. Each harmonic is read at the bin nearest to it, the
    window's transform at the exact offset divided out. Tones of 8.2 Hz (note 0) and above: a harmonic's
    main lobe is 4.6 bins to each side, so that of f0 its neighbours see the side lobes only.

    A harmonic at exactly half the sample rate is its own mirror image and counts once. One within a main
    lobe of it, but not there, overlaps its image and is read with an error, as the method has it.
    """
    with teacher_settings(y.is_cuda):
        ascending = np.argsort(f0_hz, kind="stable")  # the tones with many harmonics first
        rows = _indices(ascending, y)
        counts = 1 + np.floor(sample_rate / (2 * f0_hz[ascending])).astype(np.int64)  # DC is number 0
        bins_apart = f0_hz[ascending] * (y.shape[1] / sample_rate)
        lines = _lines(y[rows], bins_apart, counts)
        limited = y.new_empty(y.shape, dtype=lines.real.dtype)
        limited[rows] = _sum_of_lines(lines, bins_apart, counts, y.shape[1])
    return limited


def alias_ratio(y: torch.Tensor, limited: torch.Tensor) -> torch.Tensor:
    """Energy of y - limited over energy of limited, [tone] for [tone, step]; NaN where both are silent."""
    return ((y - limited) ** 2).sum(dim=1) / (limited**2).sum(dim=1)


def _indices(values: NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(values).to(like.device)


def _lines(y: torch.Tensor, bins_apart: NDArray[np.float64], counts: NDArray[np.int64]) -> torch.Tensor:
    """Complex amplitude of each harmonic, [tone, number]; zero for numbers of ``counts`` and above."""
    import torch

    steps = y.shape[1]
    window, series = _window(steps)
    # float64 from here on, as the window is
    spectrum = torch.fft.rfft(y * torch.tensor(window, device=y.device))
    number = np.arange(counts.max())
    exact = bins_apart[:, None] * number
    nearest = np.minimum(np.round(exact), steps // 2)  # an odd number of steps has no bin at its half
    offset = torch.from_numpy(exact - nearest).to(y.device)
    at_offset = torch.zeros_like(offset, dtype=spectrum.dtype)
    for coefficient in series[::-1]:  # Horner
        at_offset = at_offset * offset + complex(coefficient)
    at_offset = at_offset * torch.polar(torch.ones_like(offset), math.pi * offset)
    # a cosine is half a line at its frequency and half at the negative one, unless these are the same
    own_image = (number == 0) | np.isclose(exact, steps / 2, rtol=1e-12, atol=0)
    weight = np.where(number < counts[:, None], np.where(own_image, 1.0, 2.0), 0.0)
    found = spectrum.gather(1, _indices(nearest.astype(np.int64), y))
    lines: torch.Tensor = torch.from_numpy(weight).to(y.device) * found / at_offset
    return lines


@functools.lru_cache(maxsize=4)
def _window(steps: int) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """The window [steps], and the coefficients of its transform's series about a bin.

    With u = n / steps - 1/2 the sum over n of w e^(2 pi i d n / steps) is e^(pi i d) times the power
    series in d with coefficients (2 pi i)^m / m! times the m-th moment of w in u.
    """
    from scipy.signal.windows import chebwin

    window = chebwin(steps, _SIDE_LOBES_DB, sym=False)
    u = np.arange(steps) / steps - 0.5
    series = [(2j * math.pi) ** m / math.factorial(m) * (window @ u**m) for m in range(_TERMS)]
    return window, np.array(series)


def _sum_of_lines(
    lines: torch.Tensor, bins_apart: NDArray[np.float64], counts: NDArray[np.int64], steps: int
) -> torch.Tensor:
    """The real part of the sum over k of lines[k] e^(2 pi i k f0 t), [tone, step].

    With step = i * width + j the exponential is a product of one in i and one in j, so the sum over k is
    a matrix product: two square roots of ``steps`` exponentials a harmonic instead of ``steps``.
    """
    import torch

    width = math.isqrt(steps - 1) + 1
    height = -(-steps // width)
    cycles = torch.from_numpy(bins_apart / steps).to(lines.device)  # of the fundamental, a step
    inner = torch.arange(width, device=lines.device, dtype=cycles.dtype)
    outer = torch.arange(height, device=lines.device, dtype=cycles.dtype) * width
    total = torch.zeros(len(lines), height, width, device=lines.device, dtype=cycles.dtype)
    for first in range(0, lines.shape[1], _BLOCK_LINES):
        tones = int(np.count_nonzero(counts > first))  # counts descend
        part = lines[:tones, first : first + _BLOCK_LINES, None]
        number = torch.arange(first, first + part.shape[1], device=lines.device)
        each = cycles[:tones, None, None] * number[:, None]
        cos, sin = _cos_sin(each * outer)
        left = torch.cat([part.real * cos - part.imag * sin, -part.real * sin - part.imag * cos], dim=1)
        right = torch.cat(_cos_sin(each * inner), dim=1)
        total[:tones].baddbmm_(left.transpose(1, 2), right)
    return total.reshape(len(lines), -1)[:, :steps]


def _cos_sin(cycles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    radians = (cycles - cycles.round()).mul_(2 * math.pi)
    return radians.cos(), radians.sin()
