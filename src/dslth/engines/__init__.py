"""What runs the peers of a run, and watches over them."""
