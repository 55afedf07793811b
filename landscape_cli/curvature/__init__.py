"""Curvature of the average loss: products with the Hessian and the Fisher information, and what is made of them.

Pure functions of tensors (K, p); imports `network`, `loss` and `registry` only. Begin with objective.py, then
lanczos.py for eigenvalues.
"""
