"""(IA)3: learned scales."""
