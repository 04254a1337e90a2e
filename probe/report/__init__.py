"""The page of a study and its tables, for a browser, a terminal and other programs."""
