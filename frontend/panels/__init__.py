"""Parts of pages, one file each: `draw` shows one."""
