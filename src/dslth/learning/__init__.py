"""What peers learn with: networks under masks, data sets, partitions."""
