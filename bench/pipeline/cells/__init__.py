"""The measurements of the pipeline benchmark, with one function for each kind of cell."""
