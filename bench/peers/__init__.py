"""What m3fast is compared with, one adapter per peer, and the judges of their results."""
