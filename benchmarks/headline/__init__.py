"""The guides' headline numbers, measured: see ``bench_headline.py``."""
