"""A decentralised store: every rank holds a replica, updates travel from peer to peer."""
