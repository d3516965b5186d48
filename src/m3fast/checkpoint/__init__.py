"""A checkpoint folder's files: where they are, what they say, and the weights in them."""
