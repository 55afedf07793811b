"""Which metrics survive a change of parameters that changes nothing: transforms, claims, the invariance table.

Imports `surface`, `metrics` and what stands below them. Begin with transforms.py, then invariance.py.
"""
