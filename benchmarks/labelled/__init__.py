"""Labelled texts of five tasks as rows of `argosy train`, from the data of the built-in heads."""
