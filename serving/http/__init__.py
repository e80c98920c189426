"""The HTTP server: connections, middleware, routes, bodies, errors and the page.

A connection is taken by `accepting` and bounded by `connections`. A request then passes `request_recording`,
`private_port`, `admission_control`, `error_boundary` and `require_api_key`, and ends in a route of `v1`, `v2`,
`bentoml_api` or `page_routes`. `shortcut` leads predictions past BentoML's layers between these.
"""
