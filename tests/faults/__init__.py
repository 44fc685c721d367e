"""Every k-th system call and allocation fails once, under a scenario that uses every part of the package."""
