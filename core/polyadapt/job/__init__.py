"""Jobs: a recipe from loading to report, in a directory that can be resumed."""
