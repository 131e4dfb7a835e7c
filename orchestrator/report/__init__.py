"""The report: what the ledger knows, put into words, tables and figures. It computes no metric.

State -> results (results.json) -> summary.csv, report.html, the tables of the terminal
"""
