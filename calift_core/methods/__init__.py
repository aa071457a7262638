"""Methods: one small file each, equations in `terms`."""
