"""What a student is asked to make small. Pure functions; time is the last axis throughout."""

from __future__ import annotations

import functools

import torch
from scipy.signal import firwin, kaiserord
from torch import Tensor

PASS_HZ, STOP_HZ, STOP_DB = 12e3, 16e3, 80.0
LOBE_BINS = 2.5  # half width of a line in a Hann-windowed spectrum, with some room


@functools.cache
def low_pass(sample_rate: float) -> Tensor:
    """The filter of the pre-emphasis, [1, 1, tap] float32: linear phase, an odd number of taps.

    Edges and attenuation: the low-pass of Carson, Wright and Bilbao, arXiv 2505.11375. Above 16 kHz little
    is heard, and a student that spends its weights there lacks them below.
    """
    taps, beta = kaiserord(STOP_DB, (STOP_HZ - PASS_HZ) / (sample_rate / 2))
    taps = firwin(taps | 1, (PASS_HZ + STOP_HZ) / 2, window=("kaiser", beta), fs=sample_rate)
    return torch.from_numpy(taps).float()[None, None]


def pre_emphasised(signal: Tensor, sample_rate: float) -> Tensor:
    """``signal`` [tone, time] through ``low_pass``, where it has all its taps: [tone, time - taps + 1]."""
    taps = low_pass(sample_rate).to(signal)
    return torch.nn.functional.conv1d(signal[:, None], taps)[:, 0]


def power(signal: Tensor) -> Tensor:
    """Mean square of each tone, [tone] for [tone, time]."""
    return signal.square().mean(dim=-1)


def esr(error: Tensor, target_power: Tensor) -> Tensor:
    """Error-to-signal ratio, [tone]: power of ``error`` [tone, time] over ``target_power`` [tone].

    The power is that of the whole second: a window may be shorter than a period, and fall where it is quiet.
    """
    return power(error) / target_power


def dc(error: Tensor, target_power: Tensor) -> Tensor:
    """Square of the mean of ``error`` [tone, time] over ``target_power`` [tone]; [tone]."""
    return error.mean(dim=-1).square() / target_power


def between_harmonics(error: Tensor, target_power: Tensor, f0_hz: Tensor, sample_rate: float) -> Tensor:
    """Power of ``error`` [tone, time] between the harmonics over ``target_power`` [tone]; [tone].

    Of a target without aliases nothing lies there, so the error there is what the student adds. A periodic
    Hann window; counted are bins further than LOBE_BINS from every multiple of ``f0_hz`` [tone], DC
    included. Divided by the window's power, so that a sine between the harmonics counts with its own. Tones
    whose harmonics leave no such bin give 0.
    """
    steps = error.shape[-1]
    window = torch.hann_window(steps, dtype=error.dtype, device=error.device)
    energy = torch.fft.rfft(error * window).abs().square()
    twice = torch.full_like(energy[0], 2.0)  # a line stands for its mirror image too
    if steps % 2 == 0:
        twice[-1] = 1.0
    frequency_hz = torch.arange(energy.shape[-1], device=error.device) * (sample_rate / steps)
    f0_hz = f0_hz[:, None]
    apart_hz = (frequency_hz - f0_hz * (frequency_hz / f0_hz).round()).abs()
    counted = (apart_hz > LOBE_BINS * sample_rate / steps).to(error.dtype) * twice
    # Parseval: the sum over bins is steps times that over time steps
    between: Tensor = (energy * counted).sum(dim=-1) / (steps * window.square().sum())
    return between / target_power
