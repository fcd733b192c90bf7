"""What people see of a run, made from its run folder's files alone."""
