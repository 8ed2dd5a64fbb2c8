"""A few training steps from two baked stores: a student network learns the teacher's answer.

python examples/train_student.py train.zarr validation.zarr
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import parbake


def esr(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Error-to-signal ratio: energy of the error over energy of the signal."""
    return ((predicted - wanted) ** 2).sum() / (wanted**2).sum()


class Student(nn.Module):
    """A small stack of dilated convolutions; input and output [batch, time, channel]."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.LazyConv1d(width, 3, dilation=2**i), nn.Tanh()) for i in range(5)),
            nn.Conv1d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x.transpose(1, 2), (62, 0))  # causal: the receptive field lies before
        return self.layers(padded).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("validation")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    train = parbake.StoreDataset(options.train, fields=("x", "y", "f0", "dB"), as_tuple=True)
    validation = parbake.StoreDataset(options.validation, fields=("x", "y"), as_tuple=True)
    loader = torch.utils.data.DataLoader(train, batch_size=16, shuffle=True, num_workers=2)
    student = Student()
    length = 8_192  # samples of each tone: enough to see that it learns

    def validate() -> float:
        x, y = torch.utils.data.default_collate([validation[i] for i in range(len(validation))])
        with torch.no_grad():
            return float(esr(student(x[:, :length]), y[:, :length]))

    print(f"validation ESR before: {validate():.3f}")
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    waited, began, step = 0.0, time.perf_counter(), 0
    while step < options.steps:
        asked = time.perf_counter()
        for x, y, _f0_hz, _level_db in loader:
            waited += time.perf_counter() - asked
            optimizer.zero_grad()
            loss = esr(student(x[:, :length]), y[:, :length])
            loss.backward()
            optimizer.step()
            step += 1
            if step == options.steps:
                break
            asked = time.perf_counter()
    took = time.perf_counter() - began
    print(
        f"{step} steps in {took:.1f} s, of which {waited:.1f} s waited for data (workers starting included)"
    )
    print(f"validation ESR after:  {validate():.3f}")


if __name__ == "__main__":
    main()
