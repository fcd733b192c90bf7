"""``dslth experiment``: the claims of the paper and of its theory, each put to a test that a file describes."""
