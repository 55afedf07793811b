"""Statistics of the tables (comparison, p-values), figures and report.html: made from CSV files alone.

Imports `store`, `config` and `registry` only. Begin with statistics.py, then figures.py.
"""
