"""The eight set-ups of arXiv 2505.11375 (Carson, Wright and Bilbao), without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VALIDATION_DURATION_S = 1.2  # of all set-ups: the authors' configurations shorten training tones only
ConfigNumber = Literal[0, 1, 2, 3, 4, 5, 6, 7]


@dataclass(frozen=True)
class PaperConfig:
    """One set-up: the family of its network, its sample rate (Hz), the duration of a training tone (s)."""

    family: Literal["LSTM", "TCN"]
    sample_rate: float
    duration: float

    def __str__(self) -> str:
        article = "an" if self.family == "LSTM" else "a"
        return f"{article} {self.family} at {self.sample_rate:g} Hz"

    def fits(self, kind: str) -> bool:
        """Whether a model of ``kind`` (AmpModel.kind) is of the family; a TCN is what NAM calls WaveNet."""
        return kind.startswith(("WaveNet", "TCN") if self.family == "TCN" else self.family)


_PROTEUS_LSTM = _CUSTOM_LSTM = PaperConfig("LSTM", 44_100.0, 1.2)
_NAM_TCN, _CUSTOM_TCN = PaperConfig("TCN", 48_000.0, 1.05), PaperConfig("TCN", 44_100.0, 1.05)

PAPER_CONFIGS: Mapping[ConfigNumber, PaperConfig] = {
    0: _PROTEUS_LSTM,
    1: _PROTEUS_LSTM,
    2: _NAM_TCN,
    3: _NAM_TCN,
    4: _CUSTOM_LSTM,
    5: _CUSTOM_LSTM,
    6: _CUSTOM_TCN,
    7: _CUSTOM_TCN,
}
