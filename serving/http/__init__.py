"""The HTTP server: connections, middleware, routes, bodies, errors and the page."""
