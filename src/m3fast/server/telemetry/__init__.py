"""What a server tells about itself: metrics, log lines, traces."""
