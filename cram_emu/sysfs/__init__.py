"""The control surface: the files that an administrator of the emulated machine would see.

table holds what a tree of attributes is, without FUSE; cxl, dax, node, tiers, debugfs, registers and
trace each yield the entries of one noun; machine says which devices exist; fuse serves the table.

Paths in the table are relative to the mount point ("sys/bus/cxl/flush"). What the kernel keeps in one
place is kept in one place here; the rules of each file carry the kernel source they come from.
"""
