"""Ranks in one process: kernels that wait for others return, so a test calls the kernels of all ranks in a loop."""

import ctypes

import numpy as np

from sfb.kernels import status


def run(calls):
    """Call the kernels of all ranks until none is pending, and return their codes. A kernel that never ends fails."""
    codes = [status.PENDING] * len(calls)
    for _ in range(1000):
        for rank, call in enumerate(calls):
            if codes[rank] == status.PENDING:
                codes[rank] = call()
        if status.PENDING not in codes:
            return codes
    raise AssertionError(f"ranks wait for each other: {codes}")


class FakeMPI:
    """MPI_Isend, MPI_Irecv and MPI_Testall between ranks of one process.

    A request is the number of a receive, or 0 for a send, which is complete at once.
    """

    def __init__(self):
        self._mail = {}  # by (source, target, tag): messages under way
        self._receives = [None]
        self._functions = []

    def functions(self, rank):
        """Return MPI's functions and handles for one rank, as `sfb.kernels.rounds` takes them."""
        word, number = ctypes.c_int64, ctypes.c_int

        def send(buffer, nbytes, kind, target, tag, comm, request):
            self._mail.setdefault((rank, target, tag), []).append(ctypes.string_at(buffer, nbytes))
            ctypes.c_int64.from_address(request).value = 0
            return 0

        def receive(buffer, nbytes, kind, source, tag, comm, request):
            self._receives.append((buffer, nbytes, (source, rank, tag)))
            ctypes.c_int64.from_address(request).value = len(self._receives) - 1
            return 0

        def test(count, requests, flag, statuses):
            done = True
            for i in range(count):
                handle = ctypes.c_int64.from_address(requests + 8 * i)
                if handle.value and self._complete(handle.value):
                    handle.value = 0
                done = done and handle.value == 0
            ctypes.c_int.from_address(flag).value = done
            return 0

        post = ctypes.CFUNCTYPE(number, word, number, word, number, number, word, word)
        look = ctypes.CFUNCTYPE(number, number, word, word, word)
        made = [post(send), post(receive), look(test)]
        self._functions += made  # kernels hold their addresses only
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in made]
        return np.array([*addresses, 0, 0, 8], np.int64)

    def _complete(self, number):
        buffer, room, channel = self._receives[number]
        if not self._mail.get(channel):
            return False
        message = self.arriving(channel, self._mail[channel].pop(0))
        assert len(message) <= room, "the message is longer than the room for it"
        ctypes.memmove(buffer, message, len(message))
        return True

    def arriving(self, channel, message):
        """Return what arrives of a message on a (source, target, tag): the message itself."""
        return message
