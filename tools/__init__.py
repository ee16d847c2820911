"""What makes pages from the code: `make reference`, `make chart-docs`. Not part of any program."""
