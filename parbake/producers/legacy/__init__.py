"""Caches that training scripts wrote themselves, `torch.save` and pickle files, as producers."""
