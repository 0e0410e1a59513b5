"""One grid of experiments for the training claims: data set x method x seed."""
