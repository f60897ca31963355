"""What this host captures, and the kernel rules that do it.

In: posture and settings, declared services, what the mesh says about plain text, the mesh's addresses, facts about
this host. Out: one table in the kernel (held by the guard), a few routes, and what was captured, spared and refused,
each with its reason.

Read intent.py first (what is wanted, pure), then nft.py (the same as rules), apply.py (the only file that acts) and
controller.py (when).
"""
