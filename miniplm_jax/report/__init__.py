"""Stage report: report.html of a workdir, and a table in the terminal."""
