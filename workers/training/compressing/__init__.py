"""Make a served model smaller and faster: prune, distil, quantise, and measure each step (`argosy compress`)."""
