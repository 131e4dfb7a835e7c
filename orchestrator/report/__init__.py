"""The report: the ledger as results.json, tables, texts and figures. It computes no metric.

State -> results (results.json) -> summary.csv, report.html, the tables of the terminal
"""
