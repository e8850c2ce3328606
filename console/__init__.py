"""The web console: a client of the public HTTP API, in a process of its own.

A page is a function in `pages/`, a template in `templates/`, and, where it acts in the browser, a module in `static/`.
The server holds a session's API key; the browser has a cookie. `decisions/0022` says why there is no framework.
"""
