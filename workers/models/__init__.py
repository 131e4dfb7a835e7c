"""Models: architectures of timm and ours, their heads, their pretrained weights."""
