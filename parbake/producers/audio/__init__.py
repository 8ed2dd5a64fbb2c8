"""Sine tones through teacher networks: trained amp models, and the tasks they are distilled by."""
