"""HTTP below the routes: sockets, limits, errors, requests and replies."""
