"""What people see of a run, from its folder's files alone."""
