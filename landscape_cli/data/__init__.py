"""Data sets as tensors: those built in, image sets on disk, your own arrays; augmentation on the device; downloads.

Imports `registry` only. Begin with datasets.py; a new set is one function with @dataset in builtin.py or images.py.
"""

from landscape_cli.data import builtin, images

__all__ = ["builtin", "images"]
