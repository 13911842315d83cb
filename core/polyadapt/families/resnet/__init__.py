"""ResNets of timm."""
