"""Statistics of the tables (comparison, p-values), figures and report.html: made from CSV files alone.

Imports `audit` and what stands below it. Begin with statistics.py, then figures.py: a row a figure, its
caption and what draws it (figures_*.py).
"""
