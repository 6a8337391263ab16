"""What everything above may use: errors, ranks, devices, random numbers, the vote of kNN."""
