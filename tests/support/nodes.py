"""Communicators over parts of a host, which stand for nodes."""

from contextlib import contextmanager


def split_hosts(world, part):
    """Return a communicator of the ranks of this host for which ``part(rank on the host)`` is the same."""
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    group = host.Split(part(host.rank), host.rank)
    host.Free()
    return group


@contextmanager
def comm_of_nodes(world, ranks, **options):
    """Yield a Comm whose nodes have ``ranks`` ranks of a host each, or all of them if None."""
    import sfb

    if ranks is None:
        comm = sfb.Comm(world, **options)
    else:
        part = split_hosts(world, lambda rank: rank // ranks)
        comm = sfb.Comm(world, node=part, **options)
        part.Free()
    yield comm
    comm.free()
