"""The VITS network in plain torch: one concept a file, noise as an input, nothing that depends on a library."""
