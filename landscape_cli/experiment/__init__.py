"""The pipeline, one step a file: what is missing -> run it -> write it. Files are the only state.

Imports everything but `cli`. Begin with session.py, then compare.py.
"""
