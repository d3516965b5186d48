"""The operations of the encoder and of scoring, one per file, each with a plain-torch reference."""
