"""Teach an amp model not to alias: a copy of it learns its own output without the aliases.

    python train.py --config 0 --teacher broadcast_lstm.json --use-cached-data

Teacher-student fine-tuning as in arXiv 2505.11375 (Carson, Wright and Bilbao). With --use-cached-data the
tones and their alias-free targets come from two parbake stores, which are baked first where they are missing.
Without it the teacher computes them in worker processes, anew in each epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from options import parsed

from parbake.errors import ParbakeError, RecipeError, StaleStoreError, one_line

STOPPED = 130  # exit code after Ctrl-C, as a shell has it


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained, 1 it could not be done, 2 wrong options, 130 stopped by Ctrl-C."""
    options = parsed(sys.argv[1:] if argv is None else argv, __doc__)
    from loop import run  # torch takes seconds; --help need not wait

    try:
        return 0 if run(options) else STOPPED
    except (ParbakeError, OSError) as error:
        way_out = " (remove it, or name another path for it)" if isinstance(error, StaleStoreError) else ""
        print(f"train.py: error: {one_line(error)}{way_out}", file=sys.stderr)
        return 2 if isinstance(error, RecipeError) else 1
    except KeyboardInterrupt:
        saved = (options.out / "checkpoint.pt").exists()
        rest = "--resume goes on from the last checkpoint" if saved else "there is no checkpoint yet"
        print(f"train.py: stopped at once; {rest}", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
