"""One module a wire format, each with the same functions: `render_*` out, `parse_*` in. `client` opens HTTP."""
