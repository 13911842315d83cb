"""U-Net of latent diffusion, conditioned on text."""
