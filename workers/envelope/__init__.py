"""The life of one envelope: claimed, its inputs fetched and prepared, computed, its results stored."""
