"""The reports of a run: report.json, tables, charts and the HTML page."""
