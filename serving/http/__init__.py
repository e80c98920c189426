"""The HTTP edge: routes, bodies, errors, connections and the page."""
