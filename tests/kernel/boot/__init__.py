"""Other kernels than this machine's, each booted with an initramfs in seconds."""
