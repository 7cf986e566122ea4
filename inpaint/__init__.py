"""Distributed training of image-inpainting GANs: five papers, one trainer, Kubernetes and Ray underneath."""

__version__ = "0.1.0"
