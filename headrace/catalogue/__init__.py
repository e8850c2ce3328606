"""The models and providers of headrace.toml, and the routes to them."""
