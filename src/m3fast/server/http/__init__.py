"""HTTP below the routes: sockets, limits, errors, bodies."""
