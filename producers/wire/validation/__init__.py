"""Checks of JSON values against the schemas that workers keep in the store."""
