"""Serving: controller, model workers, web page and command line over one wire protocol."""
