"""The commands of `tadiff-train`, one a file; torch is imported inside them."""
