"""The pipeline, one step a file: what is missing -> run it -> write it. Files are the only state.

Imports everything but `cli`. Begin with session.py, then compare.py. stacks.py keeps half-trained stacks, snapshots.py
is about minima on the way, user_checkpoints.py about networks trained elsewhere.
"""
