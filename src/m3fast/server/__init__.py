"""The HTTP server: one engine behind the wire shapes that clients already speak."""
