"""Vision transformers of timm: ViT and DeiT, distilled ones included."""
