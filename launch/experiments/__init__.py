"""The experiment on generated worlds: which runs there are, doing them, keeping and showing what came out."""
