"""Building blocks on asyncio without a word of this domain: a watchable value, clock, backoff, tasks, gates, drain."""
