"""A static page that runs a model in the browser. See `ovr.lifecycle.web_export`."""
