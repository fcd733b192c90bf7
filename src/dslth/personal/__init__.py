"""Personal models: what can be done with a ticket once a run has made it."""
