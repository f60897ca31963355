"""What the kernel allows this process to have."""

import resource


def raise_descriptor_limit(wanted: int) -> int:
    """Allow up to ``wanted`` open descriptors, as far as the hard limit goes; returns what is allowed now.

    The soft limit is 1,024 by default for the sake of programs that use select(2); ours don't.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
