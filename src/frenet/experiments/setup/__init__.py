"""What experiments measure on: networks, damage, recoveries, contrasts, and how data is read."""
