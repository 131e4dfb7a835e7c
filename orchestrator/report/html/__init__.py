"""report.html: tables and figures in one file that needs no network."""
