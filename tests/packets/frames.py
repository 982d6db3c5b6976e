"""Ethernet frames, written by hand: guests that forge what the kernel would not send for them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

EVERYBODY = "ff:ff:ff:ff:ff:ff"
_UDP, _ICMP6 = 17, 58


def frame(source: str, target: str, kind: int, payload: bytes) -> str:
    """Return an Ethernet frame, in hex."""
    head = bytes.fromhex(target.replace(":", "")) + bytes.fromhex(source.replace(":", ""))
    return (head + struct.pack("!H", kind) + payload).ljust(60, b"\0").hex()


def _sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _ip(source: str, target: str, protocol: int, data: bytes) -> tuple[int, bytes]:
    """Return Ethernet's type and the packet; the checksum of `data` is at its usual place and is filled in."""
    ours, theirs = ip_address(source).packed, ip_address(target).packed
    pseudo = ours + theirs + struct.pack("!IHBB", len(data), 0, 0, protocol)
    if len(ours) == 4:
        pseudo = ours + theirs + struct.pack("!BBH", 0, protocol, len(data))
    place = 2 if protocol == _ICMP6 else 6
    data = data[:place] + struct.pack("!H", _sum(pseudo + data)) + data[place + 2 :]
    if len(ours) == 16:
        return 0x86DD, struct.pack("!IHBB", 6 << 28, len(data), protocol, 255) + ours + theirs + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, protocol, 0) + ours + theirs
    return 0x0800, head[:10] + struct.pack("!H", _sum(head)) + head[12:] + data


def udp(macs: tuple[str, str], addresses: tuple[str, str], ports: tuple[int, int], text: bytes) -> str:
    """Return a frame with a datagram; each pair is sender and receiver."""
    data = struct.pack("!HHHH", *ports, 8 + len(text), 0) + text
    return frame(*macs, *_ip(*addresses, _UDP, data))


def router_advertisement(macs: tuple[str, str], addresses: tuple[str, str], text: bytes) -> str:
    """Return a frame of a router that says it is one, for no time at all."""
    return frame(*macs, *_ip(*addresses, _ICMP6, bytes((134, 0, 0, 0, 64, 0, 0, 0)) + bytes(8) + b"\1\1" + text[:6]))


def arp_request(macs: tuple[str, str], claims: tuple[str, str], target: str) -> str:
    """Return a frame that asks for `target`; `claims` are the MAC and address that the asker says are its own."""
    claimed_mac, claimed_address = claims
    data = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex(claimed_mac.replace(":", ""))
    data += ip_address(claimed_address).packed + bytes(6) + ip_address(target).packed
    return frame(*macs, 0x0806, data)
