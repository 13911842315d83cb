"""USAT: synthesis of speech in the voice of anyone (arXiv 2404.18094), on the VITS network."""
