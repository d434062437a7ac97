"""The commands of `vinoflow`. Heavy imports happen inside them, so that `--help` is instant."""
