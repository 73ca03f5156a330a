"""What stages show, as values, and the page and tables that lay it out. Importing this package imports nothing else."""
