"""Reports: one HTML file that opens without a network."""
