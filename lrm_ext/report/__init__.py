"""Analysis: tables, plots and the report page, from the files of an evaluation."""
