"""What peers say to each other, and when."""
