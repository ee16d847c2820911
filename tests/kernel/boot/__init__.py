"""Boots other kernels than this machine's, each with an initramfs in seconds."""
