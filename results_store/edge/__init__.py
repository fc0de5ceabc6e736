"""A site's spool: the items of its cascade whose results are not final."""
