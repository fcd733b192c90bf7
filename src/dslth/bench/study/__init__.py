"""``dslth bench study``: every method tuned alike on every data set, several seeds, from a file and in cells."""
