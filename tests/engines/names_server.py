"""A name server for tests: answers for the names that are files in a folder, with what they hold, and else never."""

import socket
import struct
import sys
from pathlib import Path


def question(query):
    """The name that is asked for, and where the question ends."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels), at + 5


def main(address, folder):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        sys.stdout.write("up\n")
        sys.stdout.flush()
        while True:
            query, who = server.recvfrom(512)
            name, end = question(query)
            known = Path(folder, name)
            if not known.is_file():
                continue  # silence
            answer = struct.pack(">HHHIH4s", 0xC00C, 1, 1, 0, 4, socket.inet_aton(known.read_text()))
            server.sendto(query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:end] + answer, who)


if __name__ == "__main__":
    main(*sys.argv[1:])
