"""From run records to statistics, verdicts, figures and the report. Knows only records: nothing here trains."""
